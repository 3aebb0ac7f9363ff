"""The tensors in which K and V lie. A *slot* is one token in all layers; `slot // block_size` is its block.

Shapes: S slots asked for, K kv heads, D head dimension.
"""

import torch
from torch import Tensor

from agentkv_engine.config import BLOCK_SIZE


class KVPool:
    """K and V of every layer, `[num_blocks, block_size, kv_heads, head_dim]` each, addressed by slot."""

    def __init__(
        self, *, num_layers: int, num_blocks: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
        self.num_blocks = num_blocks
        self.device = device
        self.dtype = dtype
        self.head_shape = (num_kv_heads, head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device).flatten(0, 1) for _ in range(num_layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device).flatten(0, 1) for _ in range(num_layers)]
        self.block_bytes = 2 * num_layers * BLOCK_SIZE * num_kv_heads * head_dim * self._keys[0].element_size()

    @property
    def num_layers(self) -> int:
        """Layers whose K and V it holds."""
        return len(self._keys)

    def write(self, layer: int, slots_S: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
        """Store K and V of these slots in one layer."""
        self._keys[layer].index_copy_(0, slots_S, k_SKD)
        self._values[layer].index_copy_(0, slots_S, v_SKD)

    def read(self, layer: int, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of K and V [S, K, D] at these slots of one layer."""
        return self._keys[layer].index_select(0, slots_S), self._values[layer].index_select(0, slots_S)
