"""The tensors in which K and V lie. A *slot* is one token in all layers; `slot // block_size` is its block.

Shapes: S slots asked for, K kv heads, D head dimension.
"""

import torch
from torch import Tensor

from agentkv_engine.cache.row_traces import RowTraces, TracedShape
from agentkv_engine.config import BLOCK_SIZE


class KVPool:
    """K and V of every layer, `[num_blocks, block_size, kv_heads, head_dim]` each, addressed by slot.

    Attributes:
        traces: what rows leave beside them in the traced layers, where there are any.
        scratch_slot: a slot behind all blocks, for rows that only pad a step: written, never read.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: str,
        traced: TracedShape | None = None,
    ) -> None:
        shape = (num_blocks + 1, BLOCK_SIZE, num_kv_heads, head_dim)
        self.num_blocks = num_blocks
        self.scratch_slot = num_blocks * BLOCK_SIZE
        self.device = device
        self.dtype = dtype
        self.head_shape = (num_kv_heads, head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device).flatten(0, 1) for _ in range(num_layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device).flatten(0, 1) for _ in range(num_layers)]
        self.traces = (
            None if traced is None else RowTraces(traced, num_slots=(num_blocks + 1) * BLOCK_SIZE, device=device)
        )
        self.block_bytes = bytes_per_block(num_layers, num_kv_heads, head_dim, dtype, traced=traced)

    @property
    def num_layers(self) -> int:
        """Layers whose K and V it holds."""
        return len(self._keys)

    def write(self, layer: int, slots_S: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
        """Store K and V of these slots in one layer."""
        self._keys[layer].index_copy_(0, slots_S, k_SKD)
        self._values[layer].index_copy_(0, slots_S, v_SKD)

    def stored(self, layer: int) -> tuple[Tensor, Tensor]:
        """All slots' K and V of one layer, [slots, K, D] each, for those that read by slot; not to be written."""
        return self._keys[layer], self._values[layer]

    def read(self, layer: int, slots_S: Tensor | slice) -> tuple[Tensor, Tensor]:
        """K and V [S, K, D] at these slots of one layer: a copy, or where they lie if the slots are a slice."""
        if isinstance(slots_S, slice):
            return self._keys[layer][slots_S], self._values[layer][slots_S]
        return self._keys[layer].index_select(0, slots_S), self._values[layer].index_select(0, slots_S)


def bytes_per_block(
    num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, *, traced: TracedShape | None
) -> int:
    """Bytes of one block, all layers: keys, values, and what is traced."""
    per_token = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize
    if traced is not None:
        per_token += traced.bytes_per_token
    return BLOCK_SIZE * per_token
