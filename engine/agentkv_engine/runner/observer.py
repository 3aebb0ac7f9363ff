"""What rows read: head-mean attention from queries that lie ready, over the keys as they are now.

Rows of a probe have left their own queries; reused rows are asked by the queries stored with their keys, which are
those of their author's context.

Shapes: L layers, R rows asked for, P prompt positions, S keys, H heads, K kv heads, D head dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.levels import Levels
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.layers import DecoderLayer
from agentkv_engine.model.rope import rotate
from agentkv_engine.reuse import Probe
from agentkv_engine.scheduler.sequence import ProbeRecord, ProbeState, Residence

MOST_PROBABILITIES = 1 << 26
"""Attention probabilities, over rows, heads and keys, that are held at once: a look takes its rows in tiles."""


class Observer:
    """Makes observations for one model and pool.

    Args:
        decoder: the model; a look is charged in units of one row in one layer of it.
    """

    def __init__(self, *, pool: KVPool, decoder: Decoder, levels: Levels) -> None:
        config = decoder.config
        self.pool = pool
        self.rope = decoder.rope
        self.levels = levels
        self.group_size = config.num_heads // config.num_kv_heads
        self.output_weights = [cast(DecoderLayer, layer).attention.output.weight for layer in decoder.layers]
        self.row_layer_flops = config.flops_per_row_layer
        self._query_shape = (config.num_heads, config.head_dim)

    def record(self, probe: Probe) -> ProbeRecord:
        """Room for what a probe will leave."""
        shape = (probe.depth, len(probe.positions), *self._query_shape)
        return ProbeRecord(probe, torch.zeros(shape, dtype=self.pool.dtype, device=self.pool.device))

    def observe(self, residence: Residence) -> "LiveObservation":
        """An observation of a sequence whose probe has run."""
        assert residence.probe is not None, "nothing has been probed"
        return LiveObservation(self, residence, residence.probe)


class LiveObservation:
    """Implements `agentkv_engine.reuse.Observation`; valid until the plan is made.

    Attributes:
        flops: operations spent on looking so far.
    """

    def __init__(self, observer: Observer, residence: Residence, probe: ProbeState) -> None:
        self._observer = observer
        self._residence = residence
        self._probe = probe
        self.flops = 0

    @property
    def probes(self) -> tuple[Probe, ...]:
        """See `Observation.probes`."""
        return tuple(record.probe for record in self._probe.records)

    @property
    def has_stored_queries(self) -> bool:
        """See `Observation.has_stored_queries`."""
        return self._observer.pool.queries is not None

    @property
    def row_layers(self) -> int:
        """Work of looking so far, in rows through one layer."""
        return -(-self.flops // self._observer.row_layer_flops)

    @torch.inference_mode()
    def attention(self, layer: int, positions: Sequence[int]) -> Tensor:
        """See `Observation.attention`."""
        attention_RP = torch.zeros(len(positions), self._residence.view.num_tokens, device=self._observer.pool.device)
        if len(positions):
            look = self._look(layer, positions)
            for rows, q_RHD in look.queries:
                visible_RS = look.visible(rows)
                attention_RP[rows.unsqueeze(1), look.keys] = head_probabilities(q_RHD, look.k_SKD, visible_RS).mean(1)
        return attention_RP

    @torch.inference_mode()
    def output_change(self, layer: int, positions: Sequence[int], left_out_RP: Tensor) -> Tensor:
        """See `Observation.output_change`."""
        queries = self._observer.pool.queries
        assert queries is not None, "lengths of hidden states are kept with the queries"
        change_R = torch.zeros(len(positions), device=self._observer.pool.device)
        if len(positions) == 0:
            return change_R
        look = self._look(layer, positions)
        v_SKD = self._observer.pool.stored(layer)[1][look.slots_S]
        for rows, q_RHD in look.queries:
            visible_RS = look.visible(rows)
            kept_RS = visible_RS & ~left_out_RP.to(visible_RS.device)[rows][:, look.keys]
            difference_RHS = head_probabilities(q_RHD, look.k_SKD, visible_RS)
            difference_RHS -= head_probabilities(q_RHD, look.k_SKD, kept_RS)
            change_R[rows] = self._output_length(layer, difference_RHS, v_SKD)
            self.flops += 4 * q_RHD.numel() * len(look.keys)
        self.flops += 2 * len(positions) * self._observer.output_weights[layer].numel()
        slots = self._tensor(self._query_slots(layer, np.asarray(positions, dtype=np.int64)))
        return change_R / queries.lengths(layer, slots).clamp(min=1e-6)

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

    def _output_length(self, layer: int, weights_RHS: Tensor, v_SKD: Tensor) -> Tensor:
        """Length of the attention layer's output [R] for these weights; H is the number of heads or of kv heads."""
        weights_RKGS = weights_RHS.unflatten(1, (v_SKD.shape[1], -1))
        mixed_RKGD = torch.einsum("rkgs,skd->rkgd", weights_RKGS, v_SKD.float())
        groups = self._observer.group_size // weights_RKGS.shape[2]
        mixed_RE = mixed_RKGD.repeat_interleave(groups, dim=2).flatten(1)
        return torch.linalg.vector_norm(mixed_RE @ self._observer.output_weights[layer].float().T, dim=-1)

    def _look(self, layer: int, positions: Sequence[int]) -> "_Look":
        """The queries asked for, and the keys that lie before them now, turned to the reader's positions."""
        asked = np.asarray(positions, dtype=np.int64)
        assert ((asked >= 0) & (asked < self._residence.view.num_tokens)).all(), "these are no rows of the prompt"
        level = self._observer.levels.list_of_layer(layer)
        key_positions, slots, offsets = self._residence.table.readable(level, int(asked.max()) + 1)
        slots_S = self._tensor(slots)
        keys, _ = self._observer.pool.stored(layer)
        k_SKD = keys[slots_S]
        if offsets.any():
            k_SKD = rotate(k_SKD, self._observer.rope.by_offsets(self._tensor(offsets)))
        queries: list[tuple[Tensor, Tensor]] = []
        for rows, q_RHD in self._queries(layer, asked):
            tile = max(1, MOST_PROBABILITIES // (q_RHD.shape[1] * len(slots)))
            queries += zip(self._tensor(rows).split(tile), q_RHD.split(tile), strict=True)
        self.flops += sum(2 * q.numel() * len(slots) for _, q in queries)
        return _Look(queries, self._tensor(asked), self._tensor(key_positions), slots_S, k_SKD)

    def _queries(self, layer: int, asked: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Indices into the rows asked for, with their queries: of a probe that ran them here, else stored."""
        left = np.ones(len(asked), dtype=bool)
        for record in self._probe.records:
            rows = np.flatnonzero(np.isin(asked, record.positions))
            if layer < record.probe.depth and len(rows):
                left[rows] = False
                yield rows, record.queries_LRHD[layer, self._tensor(record.row_of(asked[rows]))]
        if left.any():
            yield np.flatnonzero(left), self._stored(layer, asked[left])

    def _stored(self, layer: int, positions_R: np.ndarray) -> Tensor:
        """Group means [R, K, D], turned to where the reader sees these rows. Rows that attend in this layer are deeper
        than it, so their private slots stand in the next layer's list."""
        queries = self._observer.pool.queries
        assert queries is not None, "no queries are stored: probe the rows instead"
        slots = self._query_slots(layer, positions_R)
        offsets = self._residence.table.offsets_at(positions_R)
        return rotate(queries.read(layer, self._tensor(slots)), self._observer.rope.by_offsets(self._tensor(offsets)))

    def _query_slots(self, layer: int, positions_R: np.ndarray) -> np.ndarray:
        slots = self._residence.table.slots_at(positions_R)[self._observer.levels.list_of_queries(layer)]
        assert (slots >= 0).all(), "these rows are neither reused nor probed"
        return slots

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._observer.pool.device)


@dataclass(frozen=True, slots=True)
class _Look:
    """Queries in tiles, each with the rows they belong to; positions of the rows; and where the keys they see lie."""

    queries: list[tuple[Tensor, Tensor]]
    positions: Tensor
    keys: Tensor
    slots_S: Tensor
    k_SKD: Tensor

    def visible(self, rows: Tensor) -> Tensor:
        """Which keys each of these rows sees, [R, S]."""
        return self.keys <= self.positions[rows].unsqueeze(1)


def head_probabilities(q_RHD: Tensor, k_SKD: Tensor, visible_RS: Tensor) -> Tensor:
    """Attention probabilities in float32 [R, H, S], H a multiple of K; all 0 where a row sees nothing."""
    q_RKGD = q_RHD.float().unflatten(1, (k_SKD.shape[1], -1))
    scores_RKGS = torch.einsum("rkgd,skd->rkgs", q_RKGD, k_SKD.float()) / q_RHD.shape[-1] ** 0.5
    scores_RHS = scores_RKGS.flatten(1, 2).masked_fill(~visible_RS.unsqueeze(1), float("-inf"))
    return scores_RHS.softmax(-1).nan_to_num()
