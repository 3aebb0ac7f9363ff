"""How a step's row attention is cut into items of about equal work, on the host.

Rows of one sequence are sorted by position and cut into tiles; a tile reads the keys at or before its last row. Where
there are too few tiles to fill the device, each one's keys are split among several items.

Shapes: R rows of all sequences, S keys of all sequences, U runs, T tiles, I items, X rows whose keys are split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentkv_engine.attention.rows import IntArray, SequenceRows

MIN_SPLIT = 256
"""Fewest keys worth an item of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowItems:
    """Work of one launch, as flat arrays.

    Attributes:
        rows_R: index of each row in the step; rows of a sequence are neighbours, in order of position.
        key_ends_R: the first key behind those that each row sees.
        key_slots_S: slots of the keys of all sequences, one sequence behind the other.
        run_starts_U1: first key of each run, and the number of keys at the end.
        offsets_U: each run's offset.
        items_I8: first row, number of rows, first key, end of keys, first run, end of runs, part (-1: not split), and
            the end of the keys that all of its rows see.
        split_rows_X4: row in the step, row in its tile, first part, number of parts.
        num_parts: items that are parts of a split tile.
    """

    rows_R: IntArray
    key_ends_R: IntArray
    key_slots_S: IntArray
    run_starts_U1: IntArray
    offsets_U: IntArray
    items_I8: IntArray
    split_rows_X4: IntArray
    num_parts: int

    def key_runs(self) -> IntArray:
        """The run of each key [S]."""
        return np.repeat(np.arange(len(self.offsets_U)), np.diff(self.run_starts_U1))


def row_items(sequences: Sequence[SequenceRows], *, tile_rows: int, num_items: int) -> RowItems:
    """Cut the work of these sequences.

    Args:
        sequences: at least one, each with rows and keys.
        tile_rows: most rows of a tile.
        num_items: items (not counting kv heads) that fill the device.
    """
    first_row = _starts([len(s.rows) for s in sequences])
    first_key = _starts([len(s.key_slots) for s in sequences])
    positions = np.concatenate([s.positions for s in sequences])
    order = np.lexsort((positions, np.repeat(np.arange(len(sequences)), np.diff(first_row))))
    rows_R = np.concatenate([s.rows for s in sequences])[order]
    key_ends_R = np.concatenate([_num_seen(s) + start for s, start in zip(sequences, first_key, strict=False)])[order]
    run_starts_U1, offsets_U = _runs(sequences, first_key)
    tiles_T5 = _tiles(first_row, first_key, key_ends_R, tile_rows)
    items_I8, split_rows_X4, num_parts = _split(tiles_T5, rows_R, num_items)
    items_I8[:, 4] = np.searchsorted(run_starts_U1, items_I8[:, 2], side="right") - 1
    items_I8[:, 5] = np.searchsorted(run_starts_U1, items_I8[:, 3], side="left")
    return RowItems(
        rows_R=rows_R,
        key_ends_R=key_ends_R,
        key_slots_S=np.concatenate([s.key_slots for s in sequences]),
        run_starts_U1=run_starts_U1,
        offsets_U=offsets_U,
        items_I8=items_I8[np.argsort(items_I8[:, 2] - items_I8[:, 3], kind="stable")],  # the longest first
        split_rows_X4=split_rows_X4,
        num_parts=num_parts,
    )


def _starts(counts: list[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _num_seen(sequence: SequenceRows) -> IntArray:
    """How many of the sequence's keys each of its rows sees."""
    keys = sequence.key_positions
    if len(keys) and keys[-1] == len(keys) - 1:  # no holes
        return np.minimum(sequence.positions + 1, len(keys))
    return np.searchsorted(keys, sequence.positions, side="right")


def _runs(sequences: Sequence[SequenceRows], first_key: IntArray) -> tuple[IntArray, IntArray]:
    """Starts [U + 1] and offsets [U] of the runs; a run never goes on into the next sequence."""
    offsets_S = np.concatenate([s.key_offsets for s in sequences])
    changes_S = np.ones(len(offsets_S), dtype=bool)
    np.not_equal(offsets_S[1:], offsets_S[:-1], out=changes_S[1:])
    changes_S[first_key[:-1]] = True
    starts_U = np.flatnonzero(changes_S)
    return np.append(starts_U, len(offsets_S)), offsets_S[starts_U]


def _tiles(first_row: IntArray, first_key: IntArray, key_ends_R: IntArray, tile_rows: int) -> IntArray:
    """First row, number of rows, first key, end of keys, end of the keys that all rows see."""
    num_tiles = -(-np.diff(first_row) // tile_rows)
    sequence_T = np.repeat(np.arange(len(num_tiles)), num_tiles)
    number_T = np.arange(len(sequence_T)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    rows_T = first_row[sequence_T] + number_T * tile_rows
    ends_T = np.minimum(rows_T + tile_rows, first_row[sequence_T + 1])
    return np.stack(
        [rows_T, ends_T - rows_T, first_key[sequence_T], key_ends_R[ends_T - 1], key_ends_R[rows_T]], axis=1
    )


def _split(tiles_T5: IntArray, rows_R: IntArray, num_items: int) -> tuple[IntArray, IntArray, int]:
    """Items without their runs, rows of split tiles, and the number of parts."""
    num_keys_T = tiles_T5[:, 3] - tiles_T5[:, 2]
    stretch = max(1, int(num_keys_T.max()))
    if len(tiles_T5) < num_items:
        stretch = max(MIN_SPLIT, -(-int(num_keys_T.sum()) // num_items))
    num_parts_T = np.maximum(1, -(-num_keys_T // stretch))
    tile_I = np.repeat(np.arange(len(tiles_T5)), num_parts_T)
    part_I = np.arange(len(tile_I)) - np.repeat(np.cumsum(num_parts_T) - num_parts_T, num_parts_T)
    lengths_I = -(-num_keys_T // num_parts_T)[tile_I]
    items_I8 = np.zeros((len(tile_I), 8), dtype=np.int64)
    items_I8[:, :2] = tiles_T5[tile_I, :2]
    items_I8[:, 2] = tiles_T5[tile_I, 2] + part_I * lengths_I
    items_I8[:, 3] = np.minimum(items_I8[:, 2] + lengths_I, tiles_T5[tile_I, 3])
    items_I8[:, 7] = np.clip(tiles_T5[tile_I, 4], items_I8[:, 2], items_I8[:, 3])
    is_part_I = num_parts_T[tile_I] > 1
    items_I8[:, 6] = np.where(is_part_I, np.cumsum(is_part_I) - 1, -1)
    return items_I8, _split_rows(tiles_T5, num_parts_T, rows_R), int(is_part_I.sum())


def _split_rows(tiles_T5: IntArray, num_parts_T: IntArray, rows_R: IntArray) -> IntArray:
    split = np.flatnonzero(num_parts_T > 1)
    first_part = np.cumsum(num_parts_T[split]) - num_parts_T[split]
    counts = tiles_T5[split, 1]
    tile_X = np.repeat(np.arange(len(split)), counts)
    row_X = np.arange(len(tile_X)) - np.repeat(np.cumsum(counts) - counts, counts)
    step_row_X = rows_R[tiles_T5[split, 0][tile_X] + row_X]
    return np.stack([step_row_X, row_X, first_part[tile_X], num_parts_T[split][tile_X]], axis=1)
