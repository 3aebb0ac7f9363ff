"""Where the keys of a sequence lie: positions to slots, one slot list per depth level, and offsets.

A *level* is one of the depths d1 < d2 < ... = L that an engine allows. The keys that layers d(k-1)+1 .. dk read (layer
0 belongs to the first level) are list k. A row recomputed at depth dk writes private slots and puts them into lists
1..k; in the layers above, its position goes on reading the shared slot.

An *offset* is the reader's position minus the position at which the key was rotated (its home). Private slots in a
reused run are rotated so that the run keeps one offset.

Shapes: K levels, P positions, N positions of one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Keys:
    """Copied-out keys of consecutive positions: what residents and prefix entries hold."""

    slots_KN: np.ndarray
    offsets_N: np.ndarray

    def __len__(self) -> int:
        return self.slots_KN.shape[1]

    def __getitem__(self, part: slice) -> "Keys":
        return Keys(self.slots_KN[:, part], self.offsets_N[part])

    @classmethod
    def joined(cls, parts: Sequence["Keys"]) -> "Keys":
        """Those of consecutive stretches; of one at least."""
        slots_KN = np.concatenate([part.slots_KN for part in parts], axis=1)
        return cls(slots_KN, np.concatenate([part.offsets_N for part in parts]))

    def moved(self, distance: int) -> "Keys":
        """The same keys, seen from `distance` positions further right."""
        return Keys(self.slots_KN, self.offsets_N + distance)


class KeyTable:
    """The keys of one sequence; grows with it."""

    def __init__(self, num_levels: int, capacity: int) -> None:
        self._slots_KP = np.full((num_levels, capacity), NO_SLOT, dtype=np.int64)
        self._offsets_P = np.zeros(capacity, dtype=np.int64)

    def place(self, start: int, keys: Keys) -> None:
        """Read positions start.. from these keys: a resident's or a prefix entry's."""
        part = slice(start, start + len(keys))
        self._slots_KP[:, part] = keys.slots_KN
        self._offsets_P[part] = keys.offsets_N

    def write(self, positions_N: np.ndarray, num_levels_N: np.ndarray, slots_N: np.ndarray) -> None:
        """Let positions be read from private slots in their first `num_levels_N` lists (all lists: fresh rows)."""
        self._grow(int(positions_N.max()) + 1)
        for level in range(len(self._slots_KP)):
            here = num_levels_N > level
            self._slots_KP[level, positions_N[here]] = slots_N[here]

    def write_one(self, position: int, slot: int) -> None:
        """Let a fresh position be read from a private slot."""
        self._grow(position + 1)
        self._slots_KP[:, position] = slot

    def copy_out(self, start: int, end: int) -> Keys:
        """A copy of the keys of positions [start, end)."""
        return Keys(self._slots_KP[:, start:end].copy(), self._offsets_P[start:end].copy())

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots [K, P] and offsets [P] up to the last position that has a key in some list."""
        end = int(np.flatnonzero((self._slots_KP != NO_SLOT).any(0)).max(initial=-1)) + 1
        return self._slots_KP[:, :end], self._offsets_P[:end]

    def restore(self, positions_N: np.ndarray, slots_KN: np.ndarray) -> None:
        """Put back what `slots_at` gave before a probe borrowed these positions."""
        self._slots_KP[:, positions_N] = slots_KN

    def slots_at(self, positions_N: np.ndarray) -> np.ndarray:
        """Slots [K, N] of these positions; NO_SLOT where there is no key yet."""
        self._grow(int(positions_N.max(initial=-1)) + 1)
        return self._slots_KP[:, positions_N]

    def offsets_at(self, positions_N: np.ndarray) -> np.ndarray:
        """Offset of the run in which each position stands; 0 for fresh rows."""
        return self._offsets_P[positions_N]

    def readable(self, level: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys that a list offers before position `end`: (positions, slots, offsets), valid until the next change.
        Positions without a key, which only a probe meets, are left out."""
        slots = self._slots_KP[level, :end]
        if slots.min(initial=0) != NO_SLOT:
            return np.arange(len(slots)), slots, self._offsets_P[:end]
        positions = np.flatnonzero(slots != NO_SLOT)
        return positions, slots[positions], self._offsets_P[positions]

    def _grow(self, size: int) -> None:
        capacity = self._offsets_P.shape[0]
        if size <= capacity:
            return
        extra = max(size, 2 * capacity) - capacity
        self._slots_KP = np.pad(self._slots_KP, ((0, 0), (0, extra)), constant_values=NO_SLOT)
        self._offsets_P = np.pad(self._offsets_P, (0, extra))
