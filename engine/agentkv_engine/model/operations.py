"""What a layer does between its matrix products: plain torch here, the oracle; fused kernels behind the same protocol.

Shapes: N rows, W rows that write in a layer, A of them (the first) that attend; E hidden size, F intermediate size,
R rows asked again, U runs of them, H heads, K kv heads, D head dimension, X = (H + 2 K) D.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.row_traces import LARGEST, Traces
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.rope import Rotation, inverse, rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlaces:
    """Where a step's rows stand, and where their keys go.

    Attributes:
        slots_N: the slot each row writes (int64).
        rotation_N: rotary rotation at each row's position, ([N, D/2], [N, D/2]).
        home_N: each row's rotation by the offset of the run in which it stands (0 for fresh rows): its key is turned
            back by it. None where no row stands in a run.
    """

    slots_N: Tensor
    rotation_N: Rotation
    home_N: Rotation | None

    def first(self, num_rows: int) -> "RowPlaces":
        """Those of the first rows."""
        if num_rows == self.slots_N.shape[0]:
            return self
        return RowPlaces(
            slots_N=self.slots_N[:num_rows],
            rotation_N=(self.rotation_N[0][:num_rows], self.rotation_N[1][:num_rows]),
            home_N=None if self.home_N is None else (self.home_N[0][:num_rows], self.home_N[1][:num_rows]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedRows:
    """Rows that left traces, where a reader sees them.

    Attributes:
        slots_R: where their traces lie (int64).
        runs_R: the run in which each stands (int64).
        turns_U: rotation by each run's offset, ([U, D/2], [U, D/2]).
    """

    slots_R: Tensor
    runs_R: Tensor
    turns_U: Rotation


class Operations(Protocol):
    """Every implementation gives what `TorchOperations` gives, but for rounding (tests/conformance)."""

    def add_norm(self, x_NE: Tensor, delta_NE: Tensor | None, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The residual stream with what the last block adds to it (None: nothing yet), and that sum normalised."""
        ...

    def swiglu(self, gate_up_N2F: Tensor) -> Tensor:
        """SwiGLU (arXiv 2002.05202) [N, F] of gates and values that stand side by side."""
        ...

    def rotate_and_store(
        self, qkv_WX: Tensor, places_W: RowPlaces, num_attending: int, pool: KVPool, layer: int
    ) -> Tensor:
        """Store these rows' K and V in their slots, and return the queries [A, H, D] of those that attend.

        Queries and keys are rotated at the rows' positions; K of a row in a run is stored at the run's home positions.
        """
        ...

    def keep_queries(self, q_AHD: Tensor, places_A: RowPlaces, kept: Traces) -> None:
        """Leave these rows' queries in their slots of a traced layer, turned home like their keys, in 8 bits."""
        ...

    def kept_queries(self, kept: Traces, rows: TurnedRows, dtype: torch.dtype) -> Tensor:
        """The queries [R, H, D] that rows left in a traced layer, turned to where a reader sees the rows."""
        ...


def choose_operations(config: ModelConfig, device: str) -> Operations:
    """Fused kernels on CUDA, where Triton is installed and the heads suit them; else torch."""
    if torch.device(device).type != "cuda" or config.head_dim & (config.head_dim - 1) or find_spec("triton") is None:
        return TorchOperations()
    from agentkv_engine.model.triton_operations import TritonOperations  # noqa: PLC0415 (comes with torch for CUDA)

    return TritonOperations()


class TorchOperations:
    """The oracle, and what runs on CPU."""

    def add_norm(self, x_NE: Tensor, delta_NE: Tensor | None, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Operations.add_norm`."""
        if delta_NE is not None:
            x_NE = x_NE + delta_NE
        return x_NE, rms_norm(x_NE, weight_E, eps)

    def swiglu(self, gate_up_N2F: Tensor) -> Tensor:
        """See `Operations.swiglu`."""
        gate_NF, up_NF = gate_up_N2F.chunk(2, dim=-1)
        return F.silu(gate_NF).mul_(up_NF)

    def rotate_and_store(
        self, qkv_WX: Tensor, places_W: RowPlaces, num_attending: int, pool: KVPool, layer: int
    ) -> Tensor:
        """See `Operations.rotate_and_store`."""
        num_kv_heads, head_dim = pool.head_shape
        heads_WHD = qkv_WX.view(qkv_WX.shape[0], -1, head_dim)
        num_heads = heads_WHD.shape[1] - 2 * num_kv_heads
        turned_WHD = rotate(heads_WHD[:, : num_heads + num_kv_heads], places_W.rotation_N)
        k_WKD = turned_WHD[:, num_heads:]
        if places_W.home_N is not None:
            k_WKD = rotate(k_WKD, inverse(places_W.home_N))
        pool.write(layer, places_W.slots_N, k_WKD, heads_WHD[:, num_heads + num_kv_heads :])
        return turned_WHD[:num_attending, :num_heads]

    def keep_queries(self, q_AHD: Tensor, places_A: RowPlaces, kept: Traces) -> None:
        """See `Operations.keep_queries`."""
        if places_A.home_N is not None:
            q_AHD = rotate(q_AHD, inverse(places_A.home_N))
        q_AHD = q_AHD.float()
        scale_AH = q_AHD.abs().amax(-1).clamp(min=1e-6) / LARGEST
        kept.values_SHD.index_copy_(0, places_A.slots_N, (q_AHD / scale_AH.unsqueeze(-1)).round().to(torch.int8))
        kept.scales_SH.index_copy_(0, places_A.slots_N, scale_AH.half())

    def kept_queries(self, kept: Traces, rows: TurnedRows, dtype: torch.dtype) -> Tensor:
        """See `Operations.kept_queries`."""
        values_RHD = kept.values_SHD.index_select(0, rows.slots_R).float()
        scales_RH = kept.scales_SH.index_select(0, rows.slots_R).float()
        cos_UC, sin_UC = rows.turns_U
        turns_R = cos_UC.index_select(0, rows.runs_R), sin_UC.index_select(0, rows.runs_R)
        return rotate(values_RHD * scales_RH.unsqueeze(-1), turns_R).to(dtype)


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Root mean square normalisation (arXiv 1910.07467), in float32."""
    exact_NE = x_NE.float()
    length_N1 = torch.linalg.vector_norm(exact_NE, dim=-1, keepdim=True)
    scale_N1 = torch.addcmul(_scalar(eps, x_NE.device), length_N1, length_N1, value=1 / x_NE.shape[-1]).rsqrt_()
    return (exact_NE * scale_N1).to(x_NE.dtype).mul_(weight_E)


@lru_cache
def _scalar(value: float, device: torch.device) -> Tensor:
    """A number that a kernel can take, made once."""
    with torch.inference_mode():
        return torch.tensor(value, device=device)
