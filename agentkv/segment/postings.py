"""Where anchors stand in kept texts: up to eight places under each, in arrays, so that thousands are looked up at once.

A hash table with open addressing: an anchor stands in the first slot from its own on that was free. Its own follows
from a secret factor, so that nobody can make texts whose anchors all want the same.
"""

import secrets

import numpy as np
from numpy.typing import NDArray

MAX_POSTINGS = 8
_NOTHING = -1
_FREE = np.uint64(0)
_ONE = np.uint64(1)
_LEAST_SLOTS = 64
_PLACE_BITS = 32
_PLACE_MASK = (1 << _PLACE_BITS) - 1


class Postings:
    """Places of anchors in one tenant's texts. A full list loses its oldest: texts leave in about the order in which
    they came."""

    def __init__(self) -> None:
        self._factor = np.uint64(secrets.randbits(64) | 1)
        self._resize(_LEAST_SLOTS)

    def add(self, text_id: int, places: NDArray[np.int64], anchors: NDArray[np.uint64]) -> None:
        """Add the anchors of a text."""
        if 2 * (self._num_used + len(anchors)) > len(self._keys):
            self._make_room(len(anchors))
        slots = self._claim(anchors | _ONE)
        postings = text_id << _PLACE_BITS | places
        age = _ages(slots)
        for each in range(min(int(age.max(initial=_NOTHING)), MAX_POSTINGS - 1), -1, -1):
            here = slots[age == each]
            self._rows[here, 1:] = self._rows[here, :-1]
            self._rows[here, 0] = postings[age == each]

    def remove(self, text_id: int, anchors: NDArray[np.uint64]) -> None:
        """Remove a text's postings under its anchors."""
        slots = np.unique(self._slots(anchors | _ONE))
        rows = self._rows[slots]
        rows[rows >> _PLACE_BITS == text_id] = _NOTHING
        order = np.argsort(rows == _NOTHING, axis=1, kind="stable")
        self._rows[slots] = np.take_along_axis(rows, order, axis=1)

    def find(self, anchors: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All postings under these anchors: which anchor, text id, place in that text; in the order of the anchors, the
        newest first."""
        rows = self._rows[self._slots(anchors | _ONE)]
        which, column = np.nonzero(rows != _NOTHING)
        postings = rows[which, column]
        return which, postings >> _PLACE_BITS, postings & _PLACE_MASK

    def _slots(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The slot of each key, or the free one in which it would stand."""
        last = len(self._keys) - 1
        slots = (keys * self._factor >> self._shift).astype(np.int64)
        moving = np.arange(len(keys))
        while len(moving):
            held = self._keys[slots[moving]]
            moving = moving[(held != keys[moving]) & (held != _FREE)]
            slots[moving] = slots[moving] + 1 & last
        return slots

    def _claim(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The slots of keys, which are put there if need be."""
        slots = self._slots(keys)
        new = np.flatnonzero(self._keys[slots] != keys)
        while len(new):
            wanted = slots[new]
            self._keys[wanted] = keys[new]  # of several that want the same slot one gets it
            self._num_used += len(np.unique(wanted))
            new = new[self._keys[wanted] != keys[new]]
            slots[new] = self._slots(keys[new])
            new = new[self._keys[slots[new]] != keys[new]]
        return slots

    def _make_room(self, num_more: int) -> None:
        """Move the anchors that have postings into a table of at most a quarter of the slots taken."""
        keys, rows = self._keys, self._rows
        kept = np.flatnonzero(rows[:, 0] != _NOTHING)
        self._resize(max(_LEAST_SLOTS, 1 << (4 * (len(kept) + num_more) - 1).bit_length()))
        self._rows[self._claim(keys[kept])] = rows[kept]

    def _resize(self, num_slots: int) -> None:
        self._shift = np.uint64(65 - num_slots.bit_length())
        # A posting is (text id << 32 | place); a row holds those of one anchor, the newest first.
        self._keys = np.full(num_slots, _FREE)
        self._rows = np.full((num_slots, MAX_POSTINGS), _NOTHING, np.int64)
        self._num_used = 0


def _ages(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each item, how many later ones are in the same slot."""
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    ages = np.empty(len(slots), np.int64)
    ages[order] = np.searchsorted(ordered, ordered, side="right") - 1 - np.arange(len(slots))
    return ages
