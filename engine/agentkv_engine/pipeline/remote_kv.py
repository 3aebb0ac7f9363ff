"""The pool of a model whose layers lie at several stages, read and written layer by layer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from agentkv_engine.cache.row_traces import SKETCH, TracedShape, Traces
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.pipeline.messages import Message, ReadKV, Reply, WriteKV
from agentkv_engine.pipeline.packing import pack_stretches, pack_tensor, unpack_tensor


class Stages(Protocol):
    """What remote pools and observers ask of the runner."""

    def ask(self, layer: int, make: Callable[[int, int], Message]) -> Reply:
        """Order the stage of a layer, with the question's number and the layer's number there; waits for the answer.
        Raises RunnerLost."""
        ...

    def taking(self) -> AbstractContextManager[None]:
        """What a stage answered is taken in here; where it makes no sense the stages are lost. Raises RunnerLost."""
        ...

    def tell(self, layer: int, make: Callable[[int], Message]) -> None:
        """The same, without an answer."""
        ...


class RemoteTraces:
    """What rows left in the traced layers; has what `Residents` needs of `RowTraces`."""

    def __init__(self, stages: Stages, shape: TracedShape) -> None:
        self._stages = stages
        self._shape = shape
        self.layers = shape.layers

    def read(self, layer: int, slots_S: Tensor) -> Traces:
        """See `RowTraces.read`."""
        slots = pack_stretches(slots_S.numpy())
        reply = self._stages.ask(layer, lambda number, here: ReadKV(number, here, slots, True))
        like = self._like(len(slots_S))
        with self._stages.taking():
            parts = zip(reply.tensors, like, strict=True)
            return Traces(*(unpack_tensor(data, dtype, *shape) for data, (dtype, shape) in parts))

    def restore(self, layer: int, slots_S: Tensor, traces: Traces) -> None:
        """See `RowTraces.restore`."""
        tensors = [pack_tensor(tensor) for tensor in traces.tensors]
        slots = pack_stretches(slots_S.numpy())
        self._stages.tell(layer, lambda here: WriteKV(here, slots, True, tensors))

    def fits(self, layer: int, traces: Traces, num_tokens: int) -> bool:  # noqa: ARG002
        """See `RowTraces.fits`."""
        given = zip(traces.tensors, self._like(num_tokens), strict=True)
        return all(tuple(tensor.shape) == shape and tensor.dtype == dtype for tensor, (dtype, shape) in given)

    def _like(self, count: int) -> Sequence[tuple[torch.dtype, tuple[int, ...]]]:
        heads, size = self._shape.num_heads, self._shape.head_dim
        return (
            (torch.int8, (count, heads, size)),
            (torch.float16, (count, heads)),
            (torch.float32, (count,)),
            (torch.bfloat16, (count, SKETCH)),
        )


class RemoteKV:
    """Has what `Residents` needs of `KVPool`."""

    device = "cpu"

    def __init__(
        self, stages: Stages, shape: ModelConfig, dtype: torch.dtype, traced: TracedShape | None, block_bytes: int
    ) -> None:
        self._stages = stages
        self.num_layers = shape.num_layers
        self.head_shape = (shape.num_kv_heads, shape.head_dim)
        self.dtype = dtype
        self.block_bytes = block_bytes
        self.traces = RemoteTraces(stages, traced) if traced is not None else None

    def read(self, layer: int, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVPool.read`."""
        slots = pack_stretches(slots_S.numpy())
        reply = self._stages.ask(layer, lambda number, here: ReadKV(number, here, slots, False))
        with self._stages.taking():
            k, v = (unpack_tensor(data, self.dtype, len(slots_S), *self.head_shape) for data in reply.tensors)
            return k, v

    def write(self, layer: int, slots_S: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
        """See `KVPool.write`."""
        tensors, slots = [pack_tensor(k_SKD), pack_tensor(v_SKD)], pack_stretches(slots_S.numpy())
        self._stages.tell(layer, lambda here: WriteKV(here, slots, False, tensors))
