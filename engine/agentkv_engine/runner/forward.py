"""From a step's input to its logits: what lies on the host goes to the device in one copy, then the model runs."""

from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention.backend import AttentionBackend
from agentkv_engine.attention.launch import upload
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.operations import Operations, RowPlaces
from agentkv_engine.model.pooled import PooledRows
from agentkv_engine.model.step import RecordedRows, Step
from agentkv_engine.runner.inputs import StepInput


class Forward(Protocol):
    """Runs steps.

    Attributes:
        most_captured: rows of the largest step that is captured as a graph; 0 where none is, and nothing prepared.
    """

    most_captured: int

    def prepare(self, rows: StepInput) -> bool:
        """Get ready for a step whose token ids are put into `rows` later; False where it can't."""
        ...

    def ready(self, rows: StepInput) -> StepInput | Step:
        """What can be done for a step while others run; may be called by a thread of its own."""
        ...

    def __call__(self, rows: StepInput | Step, before: Tensor | None = None) -> Tensor:
        """Float32 logits [len(rows.logits_rows), vocabulary].

        Args:
            rows: of the step, or what `ready` made of them.
            before: what comes out of the stage before, where the layers are a later stage's.
        """
        ...

    def passed_on(self, rows: StepInput | Step, before: Tensor | None = None) -> Tensor:
        """The residual stream behind the last layer, instead of logits: what the next stage begins with. Its own."""
        ...


def choose_forward(
    decoder: Decoder, *, pool: KVPool, backend: AttentionBackend[Any], operations: Operations, graph_memory: int
) -> Forward:
    """Graphs for small steps on CUDA, where Triton's kernels run and memory is granted; else one launch by one."""
    eager = EagerForward(decoder, pool=pool, backend=backend, operations=operations)
    if torch.device(pool.device).type != "cuda" or find_spec("triton") is None or graph_memory == 0:
        return eager
    from agentkv_engine.attention.triton_rows import TritonRows  # noqa: PLC0415 (Triton comes with torch for CUDA)
    from agentkv_engine.runner.graphs import GraphForward, cuda_capture  # noqa: PLC0415

    if not isinstance(backend, TritonRows):
        return eager
    return GraphForward(
        eager, decoder, pool=pool, backend=backend, operations=operations, memory=graph_memory, capture=cuda_capture()
    )


class EagerForward:
    """Launches a step's operations one by one: any step, any device."""

    most_captured = 0

    def __init__(
        self,
        decoder: Decoder,
        *,
        pool: KVPool,
        backend: AttentionBackend[Any],
        operations: Operations,
    ) -> None:
        self._decoder = decoder
        self._pool = pool
        self._backend = backend
        self._operations = operations

    @torch.inference_mode()
    def __call__(self, rows: StepInput | Step, before: Tensor | None = None) -> Tensor:
        """See `Forward`."""
        return self._decoder(self.ready(rows), before)

    @torch.inference_mode()
    def passed_on(self, rows: StepInput | Step, before: Tensor | None = None) -> Tensor:
        """See `Forward.passed_on`."""
        x, delta = self._decoder.hidden(self.ready(rows), before)
        return x if delta is None else x + delta

    def prepare(self, rows: StepInput) -> bool:  # noqa: ARG002
        """See `Forward.prepare`."""
        return False

    def ready(self, rows: StepInput | Step) -> Step:
        """See `Forward.ready`: the step on the device."""
        if isinstance(rows, Step):
            return rows
        probes = [array for probe in rows.probes for array in (probe.rows, probe.into)]
        pooled = [array for array, _ in rows.pooled]
        arrays = [rows.token_ids_N, rows.slots_N, rows.positions_N, rows.offsets_N, rows.logits_rows, *probes, *pooled]
        sizes = [len(array) for array in arrays]
        parts = upload(np.concatenate(arrays), self._pool.device).split(sizes)
        token_ids_N, slots_N, positions_N, offsets_N, logits_rows = parts[:5]
        of_probes, of_pooled = parts[5 : 5 + len(probes)], parts[5 + len(probes) :]
        rope = self._decoder.rope
        prepared = [self._backend.prepare(sequences) for sequences in rows.sequences]
        return Step(
            token_ids_N=token_ids_N,
            places=RowPlaces(
                slots_N=slots_N,
                rotation_N=rope.at_positions(positions_N),
                home_N=rope.by_offsets(offsets_N) if rows.offsets_N.any() else None,
            ),
            writing=rows.writing,
            attending=rows.attending,
            attention_of_layer=tuple(prepared[number] for number in rows.list_of_layer),
            logits_rows=logits_rows,
            ends_early=rows.ends_early,
            pool=self._pool,
            backend=self._backend,
            operations=self._operations,
            recorded=tuple(
                RecordedRows(indices=probe.rows.tolist(), rows=at, into=into, queries_LRHD=probe.queries_LRHD)
                for probe, at, into in zip(rows.probes, of_probes[::2], of_probes[1::2], strict=True)
            ),
            pooled=tuple(PooledRows(rows=at, into=into) for at, (_, into) in zip(of_pooled, rows.pooled, strict=True)),
        )
