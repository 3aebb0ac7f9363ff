"""Runs a schedule: inputs, forward pass, sampling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from agentkv_engine.attention.backend import choose_backend
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.transfers import choose_transfers
from agentkv_engine.config import EngineConfig
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.operations import choose_operations
from agentkv_engine.runner.forward import Forward, choose_forward
from agentkv_engine.runner.inputs import InputBuilder, StepInput
from agentkv_engine.runner.observer import Observer
from agentkv_engine.runner.runner import PoolPlan
from agentkv_engine.sampling.result import TokenLogprobs
from agentkv_engine.sampling.sampler import Sample, sample, score
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput, SeqResult


class ModelRunner:
    """One model on one device, in this process; implements `Runner`."""

    max_under_way = 1
    is_ready = True

    def __init__(self, forward: Forward, inputs: InputBuilder, *, tensors: KVPool, observer: Observer) -> None:
        self.tensors = tensors
        self.observer = observer
        self.prepares = forward.most_captured > 0
        self._forward = forward
        self._inputs = inputs
        self._prepared: tuple[SchedulerOutput, StepInput] | None = None

    @classmethod
    def start(cls, decoder: Decoder, config: EngineConfig, plan: PoolPlan) -> "ModelRunner":
        """A runner of this model, with a pool of its own."""
        shape = decoder.config
        tensors = KVPool(
            num_layers=shape.num_layers,
            num_blocks=plan.num_blocks,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=decoder.dtype,
            device=config.device,
            traced=plan.traced,
            transfers=choose_transfers(config.device),
        )
        backend = choose_backend(shape, decoder.rope, decoder.dtype, config.device)
        operations = choose_operations(shape, config.device)
        forward = choose_forward(
            decoder, pool=tensors, backend=backend, operations=operations, graph_memory=config.graph_memory
        )
        observer = Observer(pool=tensors, decoder=decoder, levels=plan.levels, backend=backend, operations=operations)
        traced = plan.traced is not None and shape.num_layers - 1 in plan.traced.layers
        inputs = InputBuilder(plan.levels, most_deepened=forward.most_captured, reads_last_layer=traced)
        return cls(forward, inputs, tensors=tensors, observer=observer)

    def prepare(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> bool:
        """See `Runner.prepare`."""
        rows = self._inputs.build(schedule, assert_writable)
        self._prepared = (schedule, rows)
        return self._forward.prepare(rows)

    def submit(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> "Launched":
        """See `Runner.submit`: a GPU runs the step while the host goes on."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] is schedule:
            rows = prepared[1]
            rows.token_ids_N[:] = [item.sequence.token_ids[-1] for item in schedule.scheduled]
        else:
            rows = self._inputs.build(schedule, assert_writable)
        return Launched(schedule.scheduled, self._forward(rows))

    def wait_until_ready(self, timeout: float) -> bool:  # noqa: ARG002
        """See `Runner.wait_until_ready`: always."""
        return True

    def interrupt(self) -> None:
        """See `Runner.interrupt`: nothing is waited for that could be."""

    def close(self) -> None:
        """See `Runner.close`: nothing runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A step whose logits are there, or will be when the device gets to them."""

    items: Sequence[ScheduledSeq]
    logits: Tensor

    def arrives(self) -> bool:
        """See `Pending.arrives`."""
        return True

    def result(self) -> list[SeqResult]:
        """See `Pending.result`."""
        return results(self.items, self.logits)


def results(items: Sequence[ScheduledSeq], logits: Tensor) -> list[SeqResult]:
    """What a step's logits mean for each sequence: tokens are sampled, known ones scored."""
    samples = _sample(items, logits)
    return [
        SeqResult(logits=part, sampled=samples.get(number), scored=_score(item, part))
        for number, (item, part) in enumerate(zip(items, logits.split([i.num_logits for i in items]), strict=True))
    ]


def _sample(items: Sequence[ScheduledSeq], logits: Tensor) -> dict[int, Sample]:
    """One call for all that sample, each from its last row of logits; by number of the item."""
    ends = list(accumulate(item.num_logits for item in items))
    numbers = [number for number, item in enumerate(items) if item.samples]
    if not numbers:
        return {}
    rows = logits if len(numbers) == len(logits) else logits[[ends[number] - 1 for number in numbers]]
    return dict(zip(numbers, sample(rows, [items[number].sequence.sampling for number in numbers]), strict=True))


def _score(item: ScheduledSeq, logits: Tensor) -> tuple[TokenLogprobs, ...]:
    if item.num_scored == 0:
        return ()
    request = item.sequence.request
    known = (*request.token_ids, *(request.forced_output or ()))
    after = (item.rows.positions[len(item.rows) - item.num_logits :][: item.num_scored] + 1).tolist()
    num_top = request.num_logprobs if request.forced_output is not None else request.prompt_logprobs
    assert num_top is not None
    return score(logits[: item.num_scored], [known[position] for position in after], num_top)
