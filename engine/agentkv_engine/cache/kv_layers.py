"""What the registry of residents asks of the KV of a whole model, wherever its layers lie."""

from typing import Protocol

import torch
from torch import Tensor

from agentkv_engine.cache.row_traces import Traces


class TraceLayers(Protocol):
    """See `RowTraces`."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    def read(self, layer: int, slots_S: Tensor) -> Traces: ...

    def restore(self, layer: int, slots_S: Tensor, traces: Traces) -> None: ...

    def fits(self, layer: int, traces: Traces, num_tokens: int) -> bool: ...


class KVLayers(Protocol):
    """See `KVPool`."""

    @property
    def num_layers(self) -> int: ...

    @property
    def head_shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> str: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def traces(self) -> TraceLayers | None: ...

    def read(self, layer: int, slots_S: Tensor) -> tuple[Tensor, Tensor]: ...

    def write(self, layer: int, slots_S: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None: ...
