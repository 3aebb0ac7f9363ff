"""The grams of kept texts, so that many places of many texts can be compared with others at once."""

import numpy as np
from numpy.typing import NDArray

_LEAST_ROOM = 1 << 12


class Grams:
    """Hashes of the grams of each text, all texts in one array, one behind another. Texts have small numbers."""

    def __init__(self) -> None:
        self._hashes = np.zeros(_LEAST_ROOM, np.uint32)
        self._begins = np.zeros(16, np.int64)
        self._counts = np.zeros(16, np.int64)
        self._end = 0

    def put(self, text_id: int, hashes: NDArray[np.uint64]) -> None:
        """Keep the grams of a text; of each hash the lower half, since equal ones are looked at once more."""
        if self._end + len(hashes) > len(self._hashes):
            self._make_room(len(hashes))
        if text_id >= len(self._begins):
            self._begins, self._counts = (np.append(each, np.zeros_like(each)) for each in (self._begins, self._counts))
        self._hashes[self._end : self._end + len(hashes)] = hashes.astype(np.uint32)
        self._begins[text_id], self._counts[text_id] = self._end, len(hashes)
        self._end += len(hashes)

    def drop(self, text_id: int) -> None:
        """Forget a text."""
        self._counts[text_id] = 0

    def equal(
        self, text_ids: NDArray[np.int64], places: NDArray[np.int64], hashes: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Whether a gram of each named text stands at the place named beside it, and has this hash."""
        there = (places >= 0) & (places < self._counts[text_ids])
        found = self._hashes[np.where(there, self._begins[text_ids] + places, 0)]
        return there & (found == hashes.astype(np.uint32))

    def _make_room(self, num_more: int) -> None:
        """Move the texts that are left together, into an array that is at most half full."""
        kept = np.flatnonzero(self._counts)
        moved = np.zeros(max(_LEAST_ROOM, 2 * (int(self._counts.sum()) + num_more)), np.uint32)
        end = 0
        for text_id in kept.tolist():
            begin, count = int(self._begins[text_id]), int(self._counts[text_id])
            moved[end : end + count] = self._hashes[begin : begin + count]
            self._begins[text_id] = end
            end += count
        self._hashes, self._end = moved, end
