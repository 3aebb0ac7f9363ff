"""Row attention on CPU: what `SdpaBackend` gives, in fewer and cheaper calls where rows stand as they mostly do.

A decode whose keys lie side by side reads them in place. Rows that are the last positions of a sequence without holes
(a chunk of a prompt) take two calls of torch's flash attention: one over the keys before them, which all of them see,
and a causal one over their own, merged by their log-sum-exp (arXiv 2205.14135). All others are the oracle's.

Shapes: A attending rows, R rows of one sequence, S its keys, H heads, K kv heads, G = H / K, D head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.attention.sdpa import PreparedSequence, SdpaBackend, torch_attention
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.rope import RotaryEmbedding

flash_attention = torch._scaled_dot_product_flash_attention_for_cpu  # pyright: ignore[reportPrivateImportUsage]
"""The only one of torch's attentions on CPU that tells the log-sum-exp of each row's scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decodes:
    """Sequences of one row that sees all of their keys, which lie side by side.

    Attributes:
        rows: of the step.
        keys: first slot and number of keys of each.
    """

    rows: Tensor | slice
    keys: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCpuRows:
    """What `CpuRows.attend` runs: decodes, sequences whose rows are their last positions, and others."""

    decodes: Decodes | None
    chunks: tuple[PreparedSequence, ...]
    others: tuple[PreparedSequence, ...]


class CpuRows:
    """Attention back end for CPU."""

    def __init__(self, rope: RotaryEmbedding) -> None:
        self._plain = SdpaBackend(rope, "cpu")

    def prepare(self, sequences: Sequence[SequenceRows]) -> PreparedCpuRows:
        """See `AttentionBackend.prepare`."""
        decodes, chunks, others = [], [], []
        for sequence in sequences:
            kind = decodes if _is_decode(sequence) else chunks if _is_chunk(sequence) else others
            kind.append(sequence)
        return PreparedCpuRows(
            decodes=self._decodes(decodes) if decodes else None,
            chunks=tuple(self._plain.prepared(sequence, masked=False) for sequence in chunks),
            others=self._plain.prepare(others),
        )

    def attend(self, q_AHD: Tensor, layer: int, pool: KVPool, prepared: PreparedCpuRows) -> Tensor:
        """See `AttentionBackend.attend`."""
        if prepared.decodes is not None and _are_all(prepared.decodes.rows, q_AHD):
            return _attend_decodes(q_AHD, pool, layer, prepared.decodes)
        if prepared.chunks and _are_all(prepared.chunks[0].rows, q_AHD):
            return self._attend_chunk(q_AHD, pool, layer, prepared.chunks[0])
        out_AHD = torch.empty_like(q_AHD)
        if prepared.decodes is not None:
            rows = prepared.decodes.rows
            out_AHD[rows] = _attend_decodes(q_AHD[rows], pool, layer, prepared.decodes)
        for chunk in prepared.chunks:
            out_AHD[chunk.rows] = self._attend_chunk(q_AHD[chunk.rows], pool, layer, chunk)
        for sequence in prepared.others:
            out_AHD[sequence.rows] = self._plain.attend_sequence(q_AHD[sequence.rows], layer, pool, sequence)
        return out_AHD

    def _decodes(self, sequences: list[SequenceRows]) -> Decodes:
        rows = np.concatenate([sequence.rows for sequence in sequences])
        return Decodes(
            rows=self._plain.indices(rows),
            keys=tuple((int(sequence.key_slots[0]), len(sequence.key_slots)) for sequence in sequences),
        )

    def _attend_chunk(self, q_RHD: Tensor, pool: KVPool, layer: int, chunk: PreparedSequence) -> Tensor:
        return last_rows_attention(q_RHD, *self._plain.keys(layer, pool, chunk))


def last_rows_attention(q_RHD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> Tensor:
    """Causal attention [R, H, D] of the last R of S positions."""
    if len(q_RHD) == 1:
        return torch_attention(q_RHD, k_SKD, v_SKD, None)
    num_heads, num_kv_heads = q_RHD.shape[1], k_SKD.shape[1]
    group = num_heads // num_kv_heads
    q_GKRD = q_RHD.unflatten(1, (num_kv_heads, group)).permute(2, 1, 0, 3)
    k_GKSD, v_GKSD = (x.transpose(0, 1).expand(group, -1, -1, -1) for x in (k_SKD, v_SKD))
    before = len(k_SKD) - len(q_RHD)
    out_GKRD, weight_GKR = flash_attention(q_GKRD, k_GKSD[:, :, before:], v_GKSD[:, :, before:], is_causal=True)
    if before:
        seen_GKRD, seen_weight_GKR = flash_attention(q_GKRD, k_GKSD[:, :, :before], v_GKSD[:, :, :before])
        share_GKR1 = torch.sigmoid(seen_weight_GKR - weight_GKR).unsqueeze(-1)
        out_GKRD = torch.lerp(out_GKRD.float(), seen_GKRD.float(), share_GKR1).to(q_RHD.dtype)
    return out_GKRD.permute(2, 1, 0, 3).reshape(q_RHD.shape)


def _attend_decodes(q_AHD: Tensor, pool: KVPool, layer: int, decodes: Decodes) -> Tensor:
    """The heads that share keys are rows of one: no key is repeated.

    In float32 two products and a softmax over all heads are quicker than flash attention, which multiplies head by
    head; torch's batched product of shorter numbers is slow.
    """
    k_1KSD, v_1KSD = pool.stored_by_head(layer)
    q_AKGD = q_AHD.view(q_AHD.shape[0], k_1KSD.shape[1], -1, q_AHD.shape[2])
    if q_AHD.dtype is torch.float32:
        k_KDS, v_KSD = k_1KSD[0].transpose(1, 2), v_1KSD[0]
        scaled_AKGD = q_AKGD * q_AHD.shape[2] ** -0.5
        outs = [
            torch.bmm(torch.bmm(q_KGD, k_KDS.narrow(2, first, count)).softmax(-1), v_KSD.narrow(1, first, count))
            for q_KGD, (first, count) in zip(scaled_AKGD.unbind(), decodes.keys, strict=True)
        ]
    else:
        outs = [
            F.scaled_dot_product_attention(q_1KGD, k_1KSD.narrow(2, first, count), v_1KSD.narrow(2, first, count))
            for q_1KGD, (first, count) in zip(q_AKGD.unsqueeze(1).unbind(), decodes.keys, strict=True)
        ]
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).view(q_AHD.shape)


def _are_all(rows: Tensor | slice, q_AHD: Tensor) -> bool:
    """Whether these are all of the step's rows, in the step's order (deepest first: not that of the sequences)."""
    return isinstance(rows, slice) and rows == slice(0, len(q_AHD))


def _is_decode(sequence: SequenceRows) -> bool:
    slots = sequence.key_slots
    return (
        len(sequence.rows) == 1
        and sequence.positions[0] >= sequence.key_positions[-1]
        and int(slots[-1]) - int(slots[0]) + 1 == len(slots)
        and bool((slots[1:] > slots[:-1]).all())
        and not sequence.key_offsets.any()
    )


def _is_chunk(sequence: SequenceRows) -> bool:
    """Whether the rows are the last positions, in order, and the keys all up to them."""
    positions, keys = sequence.positions, sequence.key_positions
    last = len(keys) - 1
    return (
        keys[-1] == last
        and positions[-1] == last
        and positions[0] == last + 1 - len(positions)
        and bool((np.diff(positions) == 1).all())
    )
