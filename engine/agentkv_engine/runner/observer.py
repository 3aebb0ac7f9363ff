"""What rows read, from queries that lie ready, over the keys as they are now; and how far that is from what they read.

Rows of a probe have left their own queries; reused rows are asked by the queries in their traces, which are those of
the context in which they were computed.

Shapes: L layers, R rows asked for, P prompt positions, S keys, H heads, K kv heads, D head dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention.backend import AttentionBackend
from agentkv_engine.attention.launch import upload
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.row_traces import RowTraces, Traces
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.operations import Operations
from agentkv_engine.model.rope import rotate
from agentkv_engine.reuse import Observation, Probe, Reading, Reread
from agentkv_engine.runner.rereading import MOST_ROWS, Rereader, Rereading
from agentkv_engine.scheduler.sequence import ProbeRecord, ProbeState, Residence

MOST_PROBABILITIES = 1 << 26
"""Attention probabilities, over rows, heads and keys, that are held at once: a look takes its rows in tiles."""

FEW_LAYERS = 8
"""A look goes through few layers of a model where it goes through 1 of so many."""


class Looking(Observation, Protocol):
    """An observation that counts its work."""

    @property
    def row_layers(self) -> int:
        """Work of looking so far, in rows through one layer."""
        ...


class Observing(Protocol):
    """What admission asks of an observer, wherever the keys lie.

    Attributes:
        look_depth: layers through which rows have to run so that a look at traced layers finds their keys.
    """

    @property
    def look_depth(self) -> int: ...

    def record(self, probe: Probe) -> ProbeRecord:
        """Room for what a probe will leave."""
        ...

    @property
    def watches(self) -> bool:
        """Whether rows can be observed beyond the plan."""
        ...

    def observe(self, residence: Residence, probe: ProbeState) -> Looking:
        """An observation of a sequence whose probe has run."""
        ...


class Observer:
    """Makes observations for one model and pool; implements `Observing`.

    Args:
        decoder: the model; a look is charged in units of one row in one layer of it.

    Attributes:
        look_depth: layers through which rows have to run so that a look at traced layers finds their keys.
        rereader: asks reused rows again.
    """

    watches = True

    def __init__(
        self, *, pool: KVPool, decoder: Decoder, levels: Levels, backend: AttentionBackend[Any], operations: Operations
    ) -> None:
        config = decoder.config
        self.pool = pool
        self.rope = decoder.rope
        self.levels = levels
        self.rereader = Rereader(pool=pool, decoder=decoder, levels=levels, backend=backend, operations=operations)
        self.row_layer_flops = config.flops_per_row_layer
        self._query_shape = (config.num_heads, config.head_dim)
        deepest = max(pool.traces.layers) if pool.traces is not None else 0
        self.look_depth = deepest if FEW_LAYERS * deepest <= config.num_layers else config.num_layers

    def record(self, probe: Probe) -> ProbeRecord:
        """Room for what a probe will leave."""
        shape = (probe.depth, len(probe.positions), *self._query_shape)
        return ProbeRecord(probe, torch.zeros(shape, dtype=self.pool.dtype, device=self.pool.device))

    def observe(self, residence: Residence, probe: ProbeState) -> "LiveObservation":
        """An observation of a sequence some of whose rows have left their queries in these records."""
        return LiveObservation(self, residence, probe)


class LiveObservation:
    """Implements `agentkv_engine.reuse.Observation`; valid until another step runs."""

    def __init__(self, observer: Observer, residence: Residence, probe: ProbeState) -> None:
        self._observer = observer
        self._residence = residence
        self._probe = probe
        self._rereading = Rereading(observer.rereader, residence)
        self._flops = 0

    @property
    def probes(self) -> tuple[Probe, ...]:
        """See `Observation.probes`."""
        return tuple(record.probe for record in self._probe.records)

    @property
    def traced_layers(self) -> tuple[int, ...]:
        """See `Observation.traced_layers`."""
        traces = self._observer.pool.traces
        return traces.layers if traces is not None else ()

    @property
    def flops(self) -> int:
        """Operations spent on looking so far."""
        return self._flops + self._rereading.flops

    @property
    def row_layers(self) -> int:
        """Work of looking so far, in rows through one layer."""
        return -(-self.flops // self._observer.row_layer_flops)

    @torch.inference_mode()
    def attention(self, layer: int, positions: Sequence[int]) -> Tensor:
        """See `Observation.attention`."""
        assert all(position < self._residence.view.num_tokens for position in positions), (
            "these are no rows of the prompt"
        )
        attention_RP = torch.zeros(len(positions), self._residence.view.num_tokens, device=self._observer.pool.device)
        if len(positions):
            for tile in self._look(layer, positions):
                attention_RP[tile.rows.unsqueeze(1), tile.keys] = tile.attention()
        return attention_RP

    @torch.inference_mode()
    def most_read(self, layer: int, positions: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """See `Observation.most_read`."""
        shares_RC = torch.zeros(len(positions), count, device=self._observer.pool.device)
        keys_RC = torch.zeros_like(shares_RC, dtype=torch.int64)
        for tile in self._look(layer, positions) if len(positions) else ():
            most = tile.attention().topk(min(count, len(tile.keys)))
            shares_RC[tile.rows, : most.values.shape[1]] = most.values
            keys_RC[tile.rows, : most.values.shape[1]] = tile.keys[most.indices]
        return shares_RC, keys_RC

    @torch.inference_mode()
    def reading(self, layer: int, rereads: Sequence[Reread], chosen: Tensor | None = None) -> Reading:
        """See `Observation.reading`."""
        self._check_traced(layer)
        borrowed = self._probe.borrowed_N
        assert len(borrowed) == 0 or not any(np.isin(r.positions, borrowed).any() for r in rereads), (
            "rows that a probe has run left traces of their own"
        )
        return self._rereading.reading(layer, rereads, chosen)

    @torch.inference_mode()
    def value_deviation(self, layer: int, positions: Sequence[int]) -> Tensor:
        """See `Observation.value_deviation`."""
        new_RE, kept_RE = self._values(layer, positions)
        return (new_RE - kept_RE).square().sum(dim=1)

    @torch.inference_mode()
    def value_turn(self, layer: int, positions: Sequence[int]) -> Tensor:
        """See `Observation.value_turn`."""
        return 1 - torch.cosine_similarity(*self._values(layer, positions), dim=1)

    def _values(self, layer: int, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What a probe wrote and what is kept, float32 [R, K * D] each."""
        asked, level = np.asarray(positions, dtype=np.int64), self._observer.levels.list_of_layer(layer)
        ran = [record.positions for record in self._probe.records if layer <= record.probe.depth]
        assert np.isin(asked, np.intersect1d(self._probe.borrowed_N, np.concatenate([*ran, asked[:0]]))).all(), (
            "not all of these are reused rows that a probe has run to this layer"
        )
        _, values = self._observer.pool.stored(layer)
        slots = (self._residence.own_P[asked], self._probe.shared_slots(asked)[level])
        new_RE, kept_RE = (values[self._tensor(each)].flatten(1).float() for each in slots)
        return new_RE, kept_RE

    def _look(self, layer: int, positions: Sequence[int]) -> Iterator["_Tile"]:
        """The queries asked for, in tiles, with the keys that lie before them now, turned to the reader's positions."""
        asked = np.asarray(positions, dtype=np.int64)
        level = self._observer.levels.list_of_layer(layer)
        key_positions, slots, offsets = self._residence.table.readable(level, int(asked.max()) + 1)
        assert np.isin(asked, key_positions).all(), "these rows have no keys"
        keys_S = self._tensor(key_positions)
        k_SKD = self._observer.pool.stored(layer)[0][self._tensor(slots)]
        if offsets.any():
            k_SKD = rotate(k_SKD, self._observer.rope.by_offsets(self._tensor(offsets)))
        for indices, q_RHD in self._queries(layer, asked):
            tile = max(1, min(MOST_ROWS, MOST_PROBABILITIES // (q_RHD.shape[1] * len(slots))))
            for first in range(0, len(indices), tile):
                rows, q = indices[first : first + tile], q_RHD[first : first + tile]
                seen = int(np.searchsorted(key_positions, asked[rows].max(), side="right"))
                self._flops += 2 * q.numel() * seen
                yield _Tile(self._tensor(rows), q, self._tensor(asked[rows]), keys_S[:seen], k_SKD[:seen])

    def _queries(self, layer: int, asked: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Indices into the rows asked for, with their queries: of a probe that ran them here, else of their traces."""
        left = np.ones(len(asked), dtype=bool)
        for record in self._probe.records:
            rows = np.flatnonzero(np.isin(asked, record.positions))
            if layer < record.probe.depth and len(rows):
                left[rows] = False
                yield rows, record.queries_LRHD[layer, self._tensor(record.row_of(asked[rows]))]
        if left.any():
            yield np.flatnonzero(left), self._turned_queries(self._traces(layer, asked[left]), asked[left])

    def _turned_queries(self, traces: Traces, positions_R: np.ndarray) -> Tensor:
        """The queries [R, H, D] of these traces, turned to where the reader sees their rows."""
        offsets = self._tensor(self._residence.table.offsets_at(positions_R))
        return rotate(traces.queries(), self._observer.rope.by_offsets(offsets))

    def _traces(self, layer: int, positions_R: np.ndarray) -> Traces:
        """What these rows left in a layer. Rows that attended in it are deeper than it, so their private slots stand in
        the next layer's list."""
        traces = self._check_traced(layer)
        slots = self._residence.table.slots_at(positions_R)[self._observer.levels.list_of_queries(layer)]
        assert (slots >= 0).all(), "these rows are neither reused nor probed"
        return traces.read(layer, self._tensor(slots))

    def _check_traced(self, layer: int) -> RowTraces:
        traces = self._observer.pool.traces
        assert traces is not None, "nothing is traced: probe the rows instead, or give the engine trace_layers"
        assert layer in traces.layers, f"layer {layer} is not among the traced layers {traces.layers}"
        return traces

    def _tensor(self, array: np.ndarray) -> Tensor:
        return upload(array, self._observer.pool.device)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some of the rows asked for: which they are, their queries and positions, and the keys before them."""

    rows: Tensor
    q_RHD: Tensor
    positions: Tensor
    keys: Tensor
    k_SKD: Tensor

    def attention(self) -> Tensor:
        """What each row pays to each key, the mean of its heads, [R, S]."""
        return head_mean_attention(self.q_RHD, self.k_SKD, self.keys <= self.positions.unsqueeze(1))


def head_mean_attention(q_RHD: Tensor, k_SKD: Tensor, visible_RS: Tensor) -> Tensor:
    """Attention probabilities in float32, the mean over heads, [R, S]; H is a multiple of K, and every row sees a key.
    One kv head after the other: what they score fits a cache."""
    num_rows, num_heads, head_dim = q_RHD.shape
    q_KRGD = (q_RHD.float() / head_dim**0.5).unflatten(1, (k_SKD.shape[1], -1)).transpose(0, 1)
    hidden_R1S = ~visible_RS.unsqueeze(1)
    total_RS = torch.zeros(visible_RS.shape, device=q_RHD.device)
    for q_RGD, k_SD in zip(q_KRGD, k_SKD.float().unbind(1), strict=True):
        scores_RGS = (q_RGD.flatten(0, 1) @ k_SD.T).unflatten(0, (num_rows, -1))
        total_RS += scores_RGS.masked_fill_(hidden_R1S, float("-inf")).softmax(-1).sum(1)
    return total_RS / num_heads
