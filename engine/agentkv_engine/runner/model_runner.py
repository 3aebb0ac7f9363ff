"""Runs a schedule: inputs, forward pass, sampling."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from torch import Tensor

from agentkv_engine.runner.forward import Forward
from agentkv_engine.runner.inputs import InputBuilder
from agentkv_engine.sampling.result import TokenLogprobs
from agentkv_engine.sampling.sampler import Sample, sample, score
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput, SeqResult


class ModelRunner:
    """One model on one device."""

    def __init__(self, forward: Forward, inputs: InputBuilder) -> None:
        self._forward = forward
        self._inputs = inputs

    def run(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> list[SeqResult]:
        """Run one step of at least one row; one result a scheduled sequence."""
        items = schedule.scheduled
        logits = self._forward(self._inputs.build(schedule, assert_writable))
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
