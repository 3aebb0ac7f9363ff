"""Queries kept beside keys, in few bits: a reused row can be asked what it would read, without running it.

With them the length of each row's hidden state behind every layer: what a change of its attention is measured against.

Grouped queries are kept as the mean of their group: one vector for each kv head. They are rotated at the home position,
like keys. Addressed by slot, so that they live and die with the keys of the same row.

Shapes: S slots, A rows, K kv heads, D head dimension.
"""

import torch
from torch import Tensor

LARGEST = 127


class QueryStore:
    """int8 queries of every layer with one scale for each slot and kv head."""

    def __init__(self, *, num_layers: int, num_slots: int, num_kv_heads: int, head_dim: int, device: str) -> None:
        shape = (num_slots, num_kv_heads, head_dim)
        self._values = [torch.zeros(shape, dtype=torch.int8, device=device) for _ in range(num_layers)]
        self._scales = [torch.zeros(shape[:2], dtype=torch.float16, device=device) for _ in range(num_layers)]
        self._lengths = torch.zeros(num_layers, num_slots, device=device)

    @staticmethod
    def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int) -> int:
        """Bytes of one slot, all layers."""
        return num_layers * (num_kv_heads * (head_dim + 2) + 4)

    def write(self, layer: int, slots_A: Tensor, q_AKD: Tensor) -> None:
        """Keep the queries of these slots in one layer."""
        q_AKD = q_AKD.float()
        scale_AK = q_AKD.abs().amax(-1).clamp(min=1e-6) / LARGEST
        self._values[layer].index_copy_(0, slots_A, (q_AKD / scale_AK.unsqueeze(-1)).round().to(torch.int8))
        self._scales[layer].index_copy_(0, slots_A, scale_AK.half())

    def read(self, layer: int, slots_S: Tensor) -> Tensor:
        """Queries of these slots, float32 [S, K, D], rotated at their home positions."""
        values_SKD = self._values[layer].index_select(0, slots_S).float()
        return values_SKD * self._scales[layer].index_select(0, slots_S).float().unsqueeze(-1)

    def write_lengths(self, layer: int, slots_A: Tensor, hidden_AE: Tensor) -> None:
        """Keep the lengths of these rows' hidden states behind one layer."""
        self.set_lengths(layer, slots_A, torch.linalg.vector_norm(hidden_AE, dim=-1, dtype=torch.float32))

    def set_lengths(self, layer: int, slots_A: Tensor, lengths_A: Tensor) -> None:
        """Keep lengths that are known already."""
        self._lengths[layer].index_copy_(0, slots_A, lengths_A)

    def lengths(self, layer: int, slots_S: Tensor) -> Tensor:
        """Lengths of the hidden states of these slots behind one layer, float32 [S]."""
        return self._lengths[layer].index_select(0, slots_S)
