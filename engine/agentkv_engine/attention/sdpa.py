"""The oracle: gathers the keys that a sequence's rows may see, turns *them*, and calls torch's attention.

Slow and plain on purpose: turning the gathered keys is independent of the turned query that fast
kernels use, so the two check each other. On CPU it also runs what `CpuRows` has no faster way for.

Shapes: A attending rows, R rows of one sequence, S its keys, H heads, K kv heads, D head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from agentkv_engine.attention.rows import IntArray, SequenceRows
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.rope import RotaryEmbedding, Rotation, rotate

CUDNN_ROWS = 8192
"""Fewest rows that cuDNN's attention may be chosen for: it makes a plan for every new length, which takes the host
30 ms on an H100 (evals/LOG.md)."""

WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSequence:
    """One sequence's indices. `mask_RS` is None where rows and keys are both 0..R-1 (plain causal), and where the only
    row stands behind all keys."""

    rows: Tensor | slice
    key_slots: Tensor | slice
    turn: Rotation | None
    mask_RS: Tensor | None


class SdpaBackend:
    """Reference attention on any device, by `torch.nn.functional.scaled_dot_product_attention`."""

    def __init__(self, rope: RotaryEmbedding, device: str) -> None:
        self._rope = rope
        self._device = device

    def prepare(self, sequences: Sequence[SequenceRows]) -> tuple[PreparedSequence, ...]:
        """See `AttentionBackend.prepare`."""
        return tuple(self.prepared(sequence, masked=True) for sequence in sequences)

    def attend(self, q_AHD: Tensor, layer: int, pool: KVPool, prepared: tuple[PreparedSequence, ...]) -> Tensor:
        """See `AttentionBackend.attend`."""
        out_AHD = torch.empty_like(q_AHD)
        for sequence in prepared:
            out_AHD[sequence.rows] = self.attend_sequence(q_AHD[sequence.rows], layer, pool, sequence)
        return out_AHD

    def attend_sequence(self, q_RHD: Tensor, layer: int, pool: KVPool, sequence: PreparedSequence) -> Tensor:
        """Attention [R, H, D] of one sequence's rows."""
        return torch_attention(q_RHD, *self.keys(layer, pool, sequence), sequence.mask_RS)

    def keys(self, layer: int, pool: KVPool, sequence: PreparedSequence) -> tuple[Tensor, Tensor]:
        """K and V [S, K, D] as the sequence's rows see them."""
        k_SKD, v_SKD = pool.read(layer, sequence.key_slots)
        return (k_SKD if sequence.turn is None else rotate(k_SKD, sequence.turn)), v_SKD

    def prepared(self, sequence: SequenceRows, *, masked: bool) -> PreparedSequence:
        """One sequence's indices, with the mask if it is wanted."""
        turn = None
        if sequence.key_offsets.any():
            turn = self._rope.by_offsets(self._tensor(sequence.key_offsets))
        return PreparedSequence(
            rows=self.indices(sequence.rows),
            key_slots=self.indices(sequence.key_slots),
            turn=turn,
            mask_RS=self._mask(sequence) if masked else None,
        )

    def indices(self, indices: IntArray) -> Tensor | slice:
        """Consecutive ones as a slice: rows and keys are then used where they lie."""
        first, last = int(indices[0]), int(indices[-1])
        if last - first + 1 == len(indices) and (np.diff(indices) == 1).all():
            return slice(first, last + 1)
        return self._tensor(indices)

    def _mask(self, sequence: SequenceRows) -> Tensor | None:
        positions, keys = sequence.positions, sequence.key_positions
        if np.array_equal(positions, np.arange(len(keys))) or (len(positions) == 1 and positions[0] >= keys[-1]):
            return None
        return self._tensor(sequence.key_positions) <= self._tensor(sequence.positions).unsqueeze(1)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def torch_attention(q_RHD: Tensor, k_SKD: Tensor, v_SKD: Tensor, mask_RS: Tensor | None) -> Tensor:
    """Attention [R, H, D] of rows over keys; without a mask several rows are plain causal, one row sees all keys."""
    if q_RHD.is_cuda and len(q_RHD) < CUDNN_ROWS:
        with sdpa_kernel(WITHOUT_PLANS):
            return _torch_attention(q_RHD, k_SKD, v_SKD, mask_RS)
    return _torch_attention(q_RHD, k_SKD, v_SKD, mask_RS)


def _torch_attention(q_RHD: Tensor, k_SKD: Tensor, v_SKD: Tensor, mask_RS: Tensor | None) -> Tensor:
    if mask_RS is None and len(q_RHD) == 1:  # the heads that share keys are rows of one: no key is repeated
        q_1KGD = q_RHD.unflatten(1, (k_SKD.shape[1], -1))
        k_1KSD, v_1KSD = (x.transpose(0, 1).unsqueeze(0) for x in (k_SKD, v_SKD))
        return F.scaled_dot_product_attention(q_1KGD, k_1KSD, v_1KSD).flatten(1, 2)
    q_1HRD, k_1KSD, v_1KSD = (x.transpose(0, 1).unsqueeze(0) for x in (q_RHD, k_SKD, v_SKD))
    out_1HRD = F.scaled_dot_product_attention(
        q_1HRD, k_1KSD, v_1KSD, attn_mask=mask_RS, is_causal=mask_RS is None and len(q_RHD) > 1, enable_gqa=True
    )
    return out_1HRD.squeeze(0).transpose(0, 1)
