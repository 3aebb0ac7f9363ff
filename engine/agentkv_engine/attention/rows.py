"""The contract of attention, as plain data.

    a row of sequence s at position p sees the keys of s at positions 0..p

Positions decide, never row numbers: rows may be any subset of a sequence, and keys may lie anywhere in the pool,
rotated at a home position that is not the one they are read at.
"""

from dataclasses import dataclass

import numpy as np

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRows:
    """The rows of one sequence that attend in a group of layers, and the keys they may see.

    Attributes:
        rows: their indices in the step.
        positions: their positions, not necessarily consecutive, in the order of `rows`.
        key_slots: pool slots of the sequence's keys, in order of position.
        key_positions: where the reader sees them; a key is visible to rows at or behind it.
        key_offsets: reader's position minus home; equal neighbours form a *run*.
    """

    rows: IntArray
    positions: IntArray
    key_slots: IntArray
    key_positions: IntArray
    key_offsets: IntArray
