"""The tensors in which K and V lie. A *slot* is one token in all layers; `slot // block_size` is its block.

Shapes: S slots asked for, K kv heads, D head dimension.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from agentkv_engine.cache.row_traces import RowTraces, TracedShape
from agentkv_engine.cache.transfers import InPlace, Transfers
from agentkv_engine.config import BLOCK_SIZE

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Memory for a tensor of a shape and dtype, uninitialised."""


class KVPool:
    """K and V of every layer, `[num_blocks, block_size, kv_heads, head_dim]` each, addressed by slot.

    Args:
        transfers: copies into the pool that may be under way; whoever reads or writes a layer waits for them.
        allocate: where the tensors come from; None is the device.

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
        transfers: Transfers | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        num_slots = (num_blocks + 1) * BLOCK_SIZE
        shape = (num_slots, num_kv_heads, head_dim)
        take = allocate or partial(_on_device, device)
        self.num_blocks = num_blocks
        self.scratch_slot = num_blocks * BLOCK_SIZE
        self.device = device
        self.dtype = dtype
        self.head_shape = (num_kv_heads, head_dim)
        self.transfers = transfers or InPlace()
        self._traced = traced
        self._keys = [take(shape, dtype) for _ in range(num_layers)]
        self._values = [take(shape, dtype) for _ in range(num_layers)]
        self._by_head = [
            (k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0))
            for k, v in zip(self._keys, self._values, strict=True)
        ]
        self.traces = None
        if traced is not None:
            self.traces = RowTraces(traced, num_slots=num_slots, device=device, allocate=take, wait=self.transfers.wait)
        self.block_bytes = bytes_per_block(num_layers, num_kv_heads, head_dim, dtype, traced=traced)

    @property
    def num_layers(self) -> int:
        """Layers whose K and V it holds."""
        return len(self._keys)

    def of_same_layout(self, num_blocks: int, allocate: Allocate) -> "KVPool":
        """A pool in host memory that holds the same of every slot."""
        num_kv_heads, head_dim = self.head_shape
        return KVPool(
            num_layers=self.num_layers,
            num_blocks=num_blocks,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=self.dtype,
            device="cpu",
            traced=self._traced,
            allocate=allocate,
        )

    def planes(self, layer: int) -> tuple[Tensor, ...]:
        """All that slots hold in one layer, [slots, ...] each: K, V and what is traced; nothing is waited for."""
        return self._keys[layer], self._values[layer], *self._traces_at(layer)

    def gather(self, layer: int, key_slots_S: Tensor, trace_slots_S: Tensor) -> tuple[Tensor, ...]:
        """Copies of `planes`: K and V at some slots, what is traced at others."""
        self.transfers.wait(layer)
        kv = (plane.index_select(0, key_slots_S) for plane in (self._keys[layer], self._values[layer]))
        return *kv, *(plane.index_select(0, trace_slots_S) for plane in self._traces_at(layer))

    def write(self, layer: int, slots_S: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
        """Store K and V of these slots in one layer."""
        self.transfers.wait(layer)
        self._keys[layer].index_copy_(0, slots_S, k_SKD)
        self._values[layer].index_copy_(0, slots_S, v_SKD)

    def stored(self, layer: int) -> tuple[Tensor, Tensor]:
        """All slots' K and V of one layer, [slots, K, D] each, for those that read by slot; not to be written."""
        self.transfers.wait(layer)
        return self._keys[layer], self._values[layer]

    def stored_by_head(self, layer: int) -> tuple[Tensor, Tensor]:
        """The same as [1, K, slots, D]."""
        self.transfers.wait(layer)
        return self._by_head[layer]

    def read(self, layer: int, slots_S: Tensor | slice) -> tuple[Tensor, Tensor]:
        """K and V [S, K, D] at these slots of one layer: a copy, or where they lie if the slots are a slice."""
        self.transfers.wait(layer)
        if isinstance(slots_S, slice):
            return self._keys[layer][slots_S], self._values[layer][slots_S]
        return self._keys[layer].index_select(0, slots_S), self._values[layer].index_select(0, slots_S)

    def _traces_at(self, layer: int) -> tuple[Tensor, ...]:
        return self.traces.planes(layer) if self.traces is not None and layer in self.traces.layers else ()


def _on_device(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def bytes_per_block(
    num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, *, traced: TracedShape | None
) -> int:
    """Bytes of one block, all layers: keys, values, and what is traced."""
    per_token = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize
    if traced is not None:
        per_token += traced.bytes_per_token
    return BLOCK_SIZE * per_token
