"""What a row leaves beside its K and V, so that it can be asked later what another context would change for it.

In the *traced layers* every row leaves its query (8 bits a value), the length of its hidden state behind the layer, and
a sketch of what attention gave it: the layer's attention output under one fixed random projection, which keeps lengths
of differences (Johnson and Lindenstrauss 1984; 64 numbers tell a length to about 9%). A reader asks the query anew over
its own keys, and compares.

Queries are rotated at the home position, like keys. Addressed by slot, so that all of it lives and dies with the keys
of the same row.

Shapes: S slots, A rows, H heads, D head dimension, E hidden size, Z numbers of a sketch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LARGEST = 127
SKETCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedShape:
    """Which layers are traced, and the model's sizes there."""

    layers: tuple[int, ...]
    num_heads: int
    head_dim: int
    hidden_size: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one slot, all traced layers."""
        return len(self.layers) * (self.num_heads * (self.head_dim + 2) + 4 + 2 * SKETCH)

    def of_stage(self, layers: range) -> "TracedShape | None":
        """What a stage traces, which numbers its layers from 0; None where that is nothing."""
        traced = tuple(layer - layers.start for layer in self.layers if layer in layers)
        return replace(self, layers=traced) if traced else None


@dataclass(frozen=True, slots=True)
class Traces:
    """Traces of some slots in one layer, as they are kept.

    Attributes:
        values_SHD: int8 queries, rotated at home, to be multiplied by `scales_SH` (float16).
        lengths_S: of the hidden states behind the layer, float32.
        sketches_SZ: of the attention outputs, bfloat16.
    """

    values_SHD: Tensor
    scales_SH: Tensor
    lengths_S: Tensor
    sketches_SZ: Tensor

    def queries(self) -> Tensor:
        """The queries, float32 [S, H, D]."""
        return self.values_SHD.float() * self.scales_SH.float().unsqueeze(-1)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of it, in one order."""
        return self.values_SHD, self.scales_SH, self.lengths_S, self.sketches_SZ

    def to(self, device: str) -> "Traces":
        """The same on another device."""
        return Traces(*(tensor.to(device) for tensor in self.tensors))


class RowTraces:
    """The traces of a pool's slots.

    Args:
        allocate: where the tensors come from.
        wait: waits for what is being copied into a layer.
    """

    def __init__(
        self,
        shape: TracedShape,
        *,
        num_slots: int,
        device: str,
        allocate: Callable[[tuple[int, ...], torch.dtype], Tensor],
        wait: Callable[[int], None],
    ) -> None:
        self.layers = shape.layers
        self._wait = wait
        queries = (num_slots, shape.num_heads, shape.head_dim)
        self._kept = {
            layer: Traces(
                allocate(queries, torch.int8).zero_(),
                allocate(queries[:2], torch.float16).zero_(),
                allocate((num_slots,), torch.float32).zero_(),
                allocate((num_slots, SKETCH), torch.bfloat16).zero_(),
            )
            for layer in shape.layers
        }
        generator = torch.Generator().manual_seed(0)
        projection_EZ = torch.randn(shape.hidden_size, SKETCH, generator=generator) / SKETCH**0.5
        self.projection_EZ = projection_EZ.to(device)

    def write_sketches(self, layer: int, slots_A: Tensor, output_AE: Tensor) -> None:
        """Keep what attention gave these rows in one layer."""
        self._kept[layer].sketches_SZ.index_copy_(0, slots_A, self.sketch(output_AE).bfloat16())

    def write_lengths(self, layer: int, slots_A: Tensor, hidden_AE: Tensor) -> None:
        """Keep the lengths of these rows' hidden states behind one layer."""
        lengths_A = torch.linalg.vector_norm(hidden_AE, dim=-1, dtype=torch.float32)
        self._kept[layer].lengths_S.index_copy_(0, slots_A, lengths_A)

    def sketch(self, output_AE: Tensor) -> Tensor:
        """Sketch [A, Z] of attention outputs."""
        return output_AE.float() @ self.projection_EZ

    def read(self, layer: int, slots_S: Tensor) -> Traces:
        """A copy of the traces of these slots in one layer."""
        self._wait(layer)
        return Traces(*(tensor.index_select(0, slots_S) for tensor in self._kept[layer].tensors))

    def in_layer(self, layer: int) -> Traces:
        """All slots' traces in one layer, for those that read by slot."""
        self._wait(layer)
        return self._kept[layer]

    def planes(self, layer: int) -> tuple[Tensor, ...]:
        """All slots' traces in one layer, in the order of `Traces.tensors`; nothing is waited for."""
        return self._kept[layer].tensors

    def restore(self, layer: int, slots_S: Tensor, traces: Traces) -> None:
        """Put back what `read` gave."""
        for kept, given in zip(self._kept[layer].tensors, traces.tensors, strict=True):
            kept.index_copy_(0, slots_S, given)

    def fits(self, layer: int, traces: Traces, num_tokens: int) -> bool:
        """Whether these are traces of so many tokens of this pool's shape."""
        pairs = zip(self._kept[layer].tensors, traces.tensors, strict=True)
        return all(given.shape == (num_tokens, *kept.shape[1:]) and given.dtype == kept.dtype for kept, given in pairs)
