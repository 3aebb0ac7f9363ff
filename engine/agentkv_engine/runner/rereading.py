"""Reused rows asked again: what their kept queries read over the keys that stand before them now, and how far that is
from what they read in their author's context.

Shapes: R rows asked, U runs of them with one offset, H heads, D head dimension, I = H * D, E hidden size, Z numbers of
a sketch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, groupby
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention.backend import AttentionBackend
from agentkv_engine.attention.launch import upload
from agentkv_engine.attention.rows import IntArray, SequenceRows
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.row_traces import SKETCH
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.layers import DecoderLayer
from agentkv_engine.model.operations import Operations, TurnedRows
from agentkv_engine.reuse import Reading, Reread
from agentkv_engine.scheduler.sequence import Residence

MOST_ROWS = 512
"""Rows that are asked at once where a back end holds all their scores: they look at the keys up to the last of them."""

MOST_PAIRS, MOST_PAIRS_ON_GPU = 1 << 26, 1 << 28
"""Rows times keys that are asked at once."""

Ranges = tuple[tuple[int, int], ...]


class Rereader:
    """Asks rows again, for one model and pool.

    Attributes:
        most_rows, most_pairs: of a batch; few rows where a back end holds all their scores.
        asks_all: rows that nobody chose are asked too: work costs less than to wait for the choice.
    """

    def __init__(
        self, *, pool: KVPool, decoder: Decoder, levels: Levels, backend: AttentionBackend[Any], operations: Operations
    ) -> None:
        self.pool = pool
        self.rope = decoder.rope
        self.levels = levels
        self.backend = backend
        self.operations = operations
        self._outputs = [cast(DecoderLayer, layer).attention.output for layer in decoder.layers]
        self._query_size = decoder.config.num_heads * decoder.config.head_dim
        self._sketched: dict[int, tuple[Tensor, Tensor]] = {}
        self.asks_all = torch.device(pool.device).type == "cuda"
        self.most_pairs = MOST_PAIRS_ON_GPU if self.asks_all else MOST_PAIRS
        self.most_rows = self.most_pairs if self.asks_all else MOST_ROWS

    def sketch(self, layer: int, mixed_RI: Tensor) -> Tensor:
        """Sketch [R, Z] in float32 of the attention layer's output for what attention mixed."""
        if layer not in self._sketched:
            self._sketched[layer] = self._sketched_output(layer)
        weight_IX, bias_Z = self._sketched[layer]
        if weight_IX.dtype is torch.float32:
            return torch.addmm(bias_Z, mixed_RI.float(), weight_IX)
        high_RZ, low_RZ = torch.mm(mixed_RI, weight_IX, out_dtype=torch.float32).split(SKETCH, dim=1)
        return high_RZ + low_RZ + bias_Z

    def _sketched_output(self, layer: int) -> tuple[Tensor, Tensor]:
        """Weight and bias that give the sketch at once: [I, Z] in float32, or on a GPU, where products of fewer bits
        are faster, [I, 2 Z] of the model's dtype: the rounded weight and beside it what rounding took."""
        traces, output = self.pool.traces, self._outputs[layer]
        assert traces is not None
        identity = torch.eye(self._query_size, device=self.pool.device, dtype=self.pool.dtype)
        bias_E = output(torch.zeros_like(identity[:1])).float()
        weight_IZ, bias_Z = traces.sketch(output(identity).float() - bias_E), traces.sketch(bias_E)[0]
        if not self.asks_all or self.pool.dtype is torch.float32:
            return weight_IZ, bias_Z
        high_IZ = weight_IZ.to(self.pool.dtype)
        return torch.cat([high_IZ, (weight_IZ - high_IZ.float()).to(self.pool.dtype)], dim=1), bias_Z


Attention = tuple[Any, int]
"""What a back end has prepared, and how many pairs of a row and a key that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Questions:
    """What some rows are asked, ready for every layer in which they and their keys lie at the same slots.

    Attributes:
        rows: where the rows' traces lie, and how their queries are turned.
        now: attention over all keys before them.
        without: the same without the keys that are left out, for the rows `left_out` (None: for all); made while the
            device is busy with the first.
    """

    rows: TurnedRows
    now: Attention
    without: Callable[[], Attention] | None
    left_out: Tensor | None


class Rereading:
    """Asks the rows of one sequence; valid until its plan is made.

    Attributes:
        flops: operations so far.
    """

    def __init__(self, rereader: Rereader, residence: Residence) -> None:
        self._rereader = rereader
        self._residence = residence
        self._ready: tuple[object, list[_Questions]] = (None, [])
        self.flops = 0

    def reading(self, layer: int, rereads: Sequence[Reread], chosen: Tensor | None) -> Reading:
        """See `Observation.reading`."""
        if chosen is not None and not self._rereader.asks_all:
            rereads, chosen = only(rereads, chosen.cpu().numpy()), None
        parts = [self._ask(layer, questions) for questions in self._questions(layer, rereads)]
        changes = [torch.cat(part) for part in zip(*parts, strict=True)] if parts else [torch.empty(0)] * 2
        since_R, by_left_out_R = changes if chosen is None else [change_R[chosen] for change_R in changes]
        return Reading(since_then_R=since_R, by_left_out_R=by_left_out_R)

    def _questions(self, layer: int, rereads: Sequence[Reread]) -> list[_Questions]:
        """Made once for layers of one level that are asked the same."""
        levels = self._rereader.levels
        lists = levels.list_of_layer(layer), levels.list_of_queries(layer)
        wanted = (lists, list(rereads))
        if self._ready[0] != wanted:
            batches = _batches(rereads, self._rereader.most_rows, self._rereader.most_pairs)
            self._ready = (wanted, [self._prepared(*lists, batch) for batch in batches])
        return self._ready[1]

    def _prepared(self, key_list: int, query_list: int, batch: Sequence[Reread]) -> _Questions:
        asked = np.concatenate([_array_of(tile.positions) for tile in batch])
        in_some = [bool(tile.left_out) for tile in batch]
        left_out = None
        if any(in_some) and not all(in_some):
            left_out = self._tensor(np.flatnonzero(np.repeat(in_some, [len(tile.positions) for tile in batch])))
        return _Questions(
            rows=self._turned(query_list, asked),
            now=self._attention(key_list, [replace(tile, left_out=()) for tile in batch]),
            without=cache(lambda: self._attention(key_list, [tile for tile in batch if tile.left_out]))
            if any(in_some)
            else None,
            left_out=left_out,
        )

    def _turned(self, query_list: int, positions_R: IntArray) -> TurnedRows:
        """Rows that attended in a layer are deeper than it, so their private slots stand in the next layer's list."""
        table = self._residence.table
        slots_R = table.slots_at(positions_R)[query_list]
        assert (slots_R >= 0).all(), "these rows are neither reused nor probed"
        offsets_R = table.offsets_at(positions_R)
        begins_R = np.ones(len(offsets_R), dtype=bool)
        np.not_equal(offsets_R[1:], offsets_R[:-1], out=begins_R[1:])
        offsets_U = offsets_R[begins_R]
        flat = self._tensor(np.concatenate([slots_R, np.cumsum(begins_R) - 1, offsets_U]))
        slots, runs, offsets = flat.split([len(slots_R), len(slots_R), len(offsets_U)])
        return TurnedRows(slots_R=slots, runs_R=runs, turns_U=self._rereader.rope.by_offsets(offsets))

    def _attention(self, key_list: int, tiles: Sequence[Reread]) -> Attention:
        """Of these tiles' rows, one behind the other."""
        groups = list(_joined(tiles, self._rereader.most_rows))
        first_rows = accumulate([len(positions) for positions, _ in groups], initial=0)
        sequences = [self._keys_of(key_list, *group, first) for group, first in zip(groups, first_rows, strict=False)]
        num_pairs = sum(len(rows.rows) * len(rows.key_slots) for rows in sequences)
        return self._rereader.backend.prepare(sequences), num_pairs

    def _keys_of(self, key_list: int, positions: IntArray, left_out: Ranges, first_row: int) -> SequenceRows:
        """The keys that these rows see, without those to be left out."""
        keys, slots, offsets = self._residence.table.readable(key_list, int(positions[-1]) + 1)
        if left_out:
            kept = np.ones(int(positions[-1]) + 1, dtype=bool)
            for start, end in left_out:
                kept[start:end] = False
            kept = kept[keys]
            keys, slots, offsets = keys[kept], slots[kept], offsets[kept]
        return SequenceRows(
            rows=np.arange(first_row, first_row + len(positions)),
            positions=positions,
            key_slots=slots,
            key_positions=keys,
            key_offsets=offsets,
        )

    def _ask(self, layer: int, questions: _Questions) -> tuple[Tensor, Tensor]:
        """Both changes of these rows, [R] each."""
        traces = self._rereader.pool.traces
        assert traces is not None
        kept = traces.in_layer(layer)
        q_RHD = self._rereader.operations.kept_queries(kept, questions.rows, self._rereader.pool.dtype)
        lengths_R = kept.lengths_S.index_select(0, questions.rows.slots_R).clamp(min=1e-6)
        then_RZ = kept.sketches_SZ.index_select(0, questions.rows.slots_R).float()
        now_RZ = self._sketch(layer, q_RHD, questions.now)
        since_R = torch.linalg.vector_norm(now_RZ - then_RZ, dim=-1) / lengths_R
        if questions.without is None:
            return since_R, torch.zeros_like(since_R)
        rows = questions.left_out
        if rows is None:
            without_RZ = self._sketch(layer, q_RHD, questions.without())
            return since_R, torch.linalg.vector_norm(now_RZ - without_RZ, dim=-1) / lengths_R
        without_RZ = self._sketch(layer, q_RHD[rows], questions.without())
        changes = torch.linalg.vector_norm(now_RZ[rows] - without_RZ, dim=-1) / lengths_R[rows]
        return since_R, torch.zeros_like(since_R).index_copy_(0, rows, changes)

    def _sketch(self, layer: int, q_RHD: Tensor, attention: Attention) -> Tensor:
        """Sketch [R, Z] of the attention layer's output for these queries."""
        prepared, num_pairs = attention
        mixed_RHD = self._rereader.backend.attend(q_RHD, layer, self._rereader.pool, prepared)
        self.flops += 4 * num_pairs * q_RHD.shape[1] * q_RHD.shape[2] + 2 * q_RHD.numel() * SKETCH
        return self._rereader.sketch(layer, mixed_RHD.flatten(1))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return upload(array, self._rereader.pool.device)


def only(rereads: Sequence[Reread], chosen: np.ndarray) -> list[Reread]:
    """Those of the rows, counted through all groups, that are chosen; ascending."""
    first_rows = accumulate([len(each.positions) for each in rereads], initial=0)
    groups = np.split(chosen, np.searchsorted(chosen, list(first_rows)[1:-1]))
    positions = np.concatenate([_array_of(each.positions) for each in rereads])
    return [
        replace(each, positions=tuple(positions[rows].tolist()))
        for each, rows in zip(rereads, groups, strict=True)
        if len(rows)
    ]


def _batches(rereads: Sequence[Reread], most_rows: int, most_pairs: int) -> Iterator[list[Reread]]:
    """The same in parts of at most `most_rows` rows, so many at a time that they pair at most `most_pairs` rows and
    keys."""
    batch: list[Reread] = []
    num_pairs = 0
    for reread in rereads:
        for start in range(0, len(reread.positions), most_rows):
            tile = replace(reread, positions=reread.positions[start : start + most_rows])
            own_pairs = len(tile.positions) * (tile.positions[-1] + 1)
            if batch and num_pairs + own_pairs > most_pairs:
                yield batch
                batch, num_pairs = [], 0
            batch.append(tile)
            num_pairs += own_pairs
    if batch:
        yield batch


def _joined(tiles: Sequence[Reread], most_rows: int) -> Iterator[tuple[IntArray, Ranges]]:
    """Positions of rows that leave the same out, at most so many together where they are not of one tile."""
    for left_out, group in groupby(tiles, key=lambda tile: tile.left_out):
        parts: list[IntArray] = []
        for tile in group:
            if parts and sum(map(len, parts)) + len(tile.positions) > most_rows:
                yield np.concatenate(parts), left_out
                parts = []
            parts.append(_array_of(tile.positions))
        yield np.concatenate(parts), left_out


def _array_of(positions: Sequence[int]) -> IntArray:
    """numpy goes through a range number by number."""
    if isinstance(positions, range):
        return np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
    return np.asarray(positions, dtype=np.int64)
