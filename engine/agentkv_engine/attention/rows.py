"""The contract of attention, as plain data.

    a row of sequence s at position p sees the keys of s at positions 0..p

Positions decide, never row numbers: rows may be any subset of a sequence, and keys may lie anywhere in the pool,
rotated at a home position that is not the one they are read at.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRows:
    """Rows of a probe whose attention is to be recorded.

    Attributes:
        rows: indices into the sequence's rows of this step.
        into: for each of them, the row of `record_LRP` it fills.
        record_LRP: float32 [probe depth, probe rows, prompt positions], written at `[layer, into, key positions]`; the
            rows may run deeper, where the engine's levels round their depth up.
    """

    rows: IntArray
    into: IntArray
    record_LRP: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRows:
    """The rows of one sequence that attend in a group of layers, and the keys they may see.

    Attributes:
        rows: their indices in the step.
        positions: their positions, not necessarily consecutive, in the order of `rows`.
        key_slots: pool slots of the sequence's keys, in order of position.
        key_positions: where the reader sees them; a key is visible to rows at or behind it.
        key_offsets: reader's position minus home; equal neighbours form a *run*.
        observed: rows whose attention is recorded, if any.
    """

    rows: IntArray
    positions: IntArray
    key_slots: IntArray
    key_positions: IntArray
    key_offsets: IntArray
    observed: ObservedRows | None = None
