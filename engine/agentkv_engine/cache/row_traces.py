"""What a row leaves beside its K and V, so that it can be asked later what another context would change for it.

In the *traced layers* every row leaves its query (8 bits a value), the length of its hidden state behind the layer, and
a sketch of what attention gave it: the layer's attention output under one fixed random projection, which keeps lengths
of differences (Johnson and Lindenstrauss 1984; 64 numbers tell a length to about 9%). A reader asks the query anew over
its own keys, and compares.

Queries are rotated at the home position, like keys. Addressed by slot, so that all of it lives and dies with the keys
of the same row.

Shapes: S slots, A rows, H heads, D head dimension, E hidden size, Z numbers of a sketch.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Traces:
    """Traces of some slots in one layer, as they are kept: float32 queries [S, H, D], lengths [S], sketches [S, Z]."""

    queries_SHD: Tensor
    lengths_S: Tensor
    sketches_SZ: Tensor

    def to(self, device: str) -> "Traces":
        """The same on another device."""
        return Traces(self.queries_SHD.to(device), self.lengths_S.to(device), self.sketches_SZ.to(device))


class RowTraces:
    """The traces of a pool's slots."""

    def __init__(self, shape: TracedShape, *, num_slots: int, device: str) -> None:
        self.layers = shape.layers
        queries, each = (num_slots, shape.num_heads, shape.head_dim), shape.layers
        self._values = {n: torch.zeros(queries, dtype=torch.int8, device=device) for n in each}
        self._scales = {n: torch.zeros(queries[:2], dtype=torch.float16, device=device) for n in each}
        self._lengths = {n: torch.zeros(num_slots, device=device) for n in each}
        self._sketches = {n: torch.zeros(num_slots, SKETCH, dtype=torch.bfloat16, device=device) for n in each}
        generator = torch.Generator().manual_seed(0)
        projection_EZ = torch.randn(shape.hidden_size, SKETCH, generator=generator) / SKETCH**0.5
        self.projection_EZ = projection_EZ.to(device)

    def write_reading(self, layer: int, slots_A: Tensor, q_AHD: Tensor, output_AE: Tensor) -> None:
        """Keep what these rows asked in one layer, and what attention gave them."""
        q_AHD = q_AHD.float()
        scale_AH = q_AHD.abs().amax(-1).clamp(min=1e-6) / LARGEST
        self._values[layer].index_copy_(0, slots_A, (q_AHD / scale_AH.unsqueeze(-1)).round().to(torch.int8))
        self._scales[layer].index_copy_(0, slots_A, scale_AH.half())
        self._sketches[layer].index_copy_(0, slots_A, self.sketch(output_AE).bfloat16())

    def write_lengths(self, layer: int, slots_A: Tensor, hidden_AE: Tensor) -> None:
        """Keep the lengths of these rows' hidden states behind one layer."""
        lengths_A = torch.linalg.vector_norm(hidden_AE, dim=-1, dtype=torch.float32)
        self._lengths[layer].index_copy_(0, slots_A, lengths_A)

    def sketch(self, output_AE: Tensor) -> Tensor:
        """Sketch [A, Z] of attention outputs."""
        return output_AE.float() @ self.projection_EZ

    def read(self, layer: int, slots_S: Tensor) -> Traces:
        """Traces of these slots in one layer."""
        scales_SH = self._scales[layer].index_select(0, slots_S).float()
        return Traces(
            self._values[layer].index_select(0, slots_S).float() * scales_SH.unsqueeze(-1),
            self._lengths[layer].index_select(0, slots_S),
            self._sketches[layer].index_select(0, slots_S).float(),
        )

    def restore(self, layer: int, slots_S: Tensor, traces: Traces) -> None:
        """Put back what `read` gave."""
        scales_SH = (traces.queries_SHD.abs().amax(-1).clamp(min=1e-6) / LARGEST).half()
        values_SHD = (traces.queries_SHD / scales_SH.float().unsqueeze(-1)).round().clamp(-LARGEST, LARGEST)
        self._values[layer].index_copy_(0, slots_S, values_SHD.to(torch.int8))
        self._scales[layer].index_copy_(0, slots_S, scales_SH)
        self._lengths[layer].index_copy_(0, slots_S, traces.lengths_S)
        self._sketches[layer].index_copy_(0, slots_S, traces.sketches_SZ.bfloat16())
