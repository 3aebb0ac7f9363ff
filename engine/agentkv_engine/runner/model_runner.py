"""Runs a schedule: inputs, forward pass, sampling."""

from collections.abc import Callable, Sequence
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
from agentkv_engine.runner.inputs import InputBuilder
from agentkv_engine.runner.observer import Observer
from agentkv_engine.runner.runner import Done, PoolPlan
from agentkv_engine.sampling.result import TokenLogprobs
from agentkv_engine.sampling.sampler import Sample, sample, score
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput, SeqResult


class ModelRunner:
    """One model on one device, in this process; implements `Runner`."""

    max_under_way = 1

    def __init__(self, forward: Forward, inputs: InputBuilder, *, tensors: KVPool, observer: Observer) -> None:
        self.tensors = tensors
        self.observer = observer
        self._forward = forward
        self._inputs = inputs

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
        forward = choose_forward(
            decoder,
            pool=tensors,
            backend=backend,
            operations=choose_operations(shape, config.device),
            graph_memory=config.graph_memory,
        )
        observer = Observer(pool=tensors, decoder=decoder, levels=plan.levels, backend=backend)
        traced = plan.traced is not None and shape.num_layers - 1 in plan.traced.layers
        inputs = InputBuilder(plan.levels, reads_last_layer=traced)
        return cls(forward, inputs, tensors=tensors, observer=observer)

    def submit(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> Done:
        """See `Runner.submit`: the step has run."""
        return Done(self.run(schedule, assert_writable))

    def run(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> list[SeqResult]:
        """Run one step of at least one row; one result a scheduled sequence."""
        return results(schedule.scheduled, self._forward(self._inputs.build(schedule, assert_writable)))

    def wait_until_ready(self, timeout: float) -> bool:  # noqa: ARG002
        """See `Runner.wait_until_ready`: always."""
        return True

    def close(self) -> None:
        """See `Runner.close`: nothing runs elsewhere."""


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
