"""How a step's row attention is cut into items of about equal work, on the host.

Rows of one sequence are sorted by position and cut into tiles; a tile reads the keys at or before its last row, run by
run. Where there are too few tiles to fill the device, each one's keys are split among several items.

Shapes: R rows of all sequences, S keys of all sequences, U runs, I items, X rows whose keys are split.
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
        positions_R: their positions.
        key_slots_S, key_positions_S: keys of all sequences, one sequence behind the other.
        run_starts_U1: first key of each run, and the number of keys at the end.
        offsets_U: each run's offset.
        items_I8: first row, number of rows, first key, end of keys, first run, end of runs, part (-1: not split), 0.
        split_rows_X4: row in the step, row in its tile, first part, number of parts.
        num_parts: items that are parts of a split tile.
    """

    rows_R: IntArray
    positions_R: IntArray
    key_slots_S: IntArray
    key_positions_S: IntArray
    run_starts_U1: IntArray
    offsets_U: IntArray
    items_I8: IntArray
    split_rows_X4: IntArray
    num_parts: int


def row_items(sequences: Sequence[SequenceRows], *, tile_rows: int, num_items: int) -> RowItems:
    """Cut the work of these sequences.

    Args:
        sequences: at least one, each with rows and keys.
        tile_rows: most rows of a tile.
        num_items: items (not counting kv heads) that fill the device.
    """
    orders = [np.argsort(sequence.positions, kind="stable") for sequence in sequences]
    rows_R = np.concatenate([s.rows[order] for s, order in zip(sequences, orders, strict=True)])
    positions_R = np.concatenate([s.positions[order] for s, order in zip(sequences, orders, strict=True)])
    first_row = _starts([len(s.rows) for s in sequences])
    first_key = _starts([len(s.key_slots) for s in sequences])
    run_starts_U1, offsets_U = _runs(sequences, first_key)
    parts = []
    for number, sequence in enumerate(sequences):
        rows = np.arange(first_row[number], first_row[number + 1], tile_rows)
        ends = np.minimum(rows + tile_rows, first_row[number + 1])
        visible = np.searchsorted(sequence.key_positions, positions_R[ends - 1], side="right")
        base = np.full_like(rows, first_key[number])
        parts.append(np.stack([rows, ends - rows, base, base + visible], axis=1))
    tiles_T4 = np.concatenate(parts)
    items_I8, split_rows_X4, num_parts = _split(tiles_T4, rows_R, num_items)
    items_I8[:, 4] = np.searchsorted(run_starts_U1, items_I8[:, 2], side="right") - 1
    items_I8[:, 5] = np.searchsorted(run_starts_U1, items_I8[:, 3], side="left")
    return RowItems(
        rows_R=rows_R,
        positions_R=positions_R,
        key_slots_S=np.concatenate([s.key_slots for s in sequences]),
        key_positions_S=np.concatenate([s.key_positions for s in sequences]),
        run_starts_U1=run_starts_U1,
        offsets_U=offsets_U,
        items_I8=items_I8[np.argsort(items_I8[:, 2] - items_I8[:, 3], kind="stable")],  # the longest first
        split_rows_X4=split_rows_X4,
        num_parts=num_parts,
    )


def _starts(counts: list[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _runs(sequences: Sequence[SequenceRows], first_key: IntArray) -> tuple[IntArray, IntArray]:
    """Starts [U + 1] and offsets [U] of the runs; a run never goes on into the next sequence."""
    starts, offsets = [], []
    for number, sequence in enumerate(sequences):
        changes = np.flatnonzero(np.diff(sequence.key_offsets, prepend=sequence.key_offsets[0] - 1))
        starts.append(changes + first_key[number])
        offsets.append(sequence.key_offsets[changes])
    return np.concatenate([*starts, first_key[-1:]]), np.concatenate(offsets)


def _split(tiles_T4: IntArray, rows_R: IntArray, num_items: int) -> tuple[IntArray, IntArray, int]:
    """Items without their runs, rows of split tiles, and the number of parts."""
    num_keys_T = tiles_T4[:, 3] - tiles_T4[:, 2]
    stretch = int(num_keys_T.max())
    if len(tiles_T4) < num_items:
        stretch = max(MIN_SPLIT, -(-int(num_keys_T.sum()) // num_items))
    num_parts_T = np.maximum(1, -(-num_keys_T // stretch))
    tile_I = np.repeat(np.arange(len(tiles_T4)), num_parts_T)
    part_I = np.arange(len(tile_I)) - np.repeat(np.cumsum(num_parts_T) - num_parts_T, num_parts_T)
    lengths_I = -(-num_keys_T // num_parts_T)[tile_I]
    items_I8 = np.zeros((len(tile_I), 8), dtype=np.int64)
    items_I8[:, :2] = tiles_T4[tile_I, :2]
    items_I8[:, 2] = tiles_T4[tile_I, 2] + part_I * lengths_I
    items_I8[:, 3] = np.minimum(items_I8[:, 2] + lengths_I, tiles_T4[tile_I, 3])
    is_part_I = num_parts_T[tile_I] > 1
    items_I8[:, 6] = np.where(is_part_I, np.cumsum(is_part_I) - 1, -1)
    return items_I8, _split_rows(tiles_T4, num_parts_T, rows_R), int(is_part_I.sum())


def _split_rows(tiles_T4: IntArray, num_parts_T: IntArray, rows_R: IntArray) -> IntArray:
    split = np.flatnonzero(num_parts_T > 1)
    first_part = np.cumsum(num_parts_T[split]) - num_parts_T[split]
    counts = tiles_T4[split, 1]
    tile_X = np.repeat(np.arange(len(split)), counts)
    row_X = np.arange(len(tile_X)) - np.repeat(np.cumsum(counts) - counts, counts)
    step_row_X = rows_R[tiles_T4[split, 0][tile_X] + row_X]
    return np.stack([step_row_X, row_X, first_part[tile_X], num_parts_T[split][tile_X]], axis=1)
