"""Runs a schedule: inputs, forward pass, sampling."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from agentkv_engine.model.decoder import Decoder
from agentkv_engine.runner.inputs import InputBuilder
from agentkv_engine.runner.sampler import sample
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput


@dataclass(frozen=True, slots=True)
class StepResult:
    """For each scheduled sequence: logits [num_logits, vocabulary] and the sampled token, if its last row is its last
    known token."""

    logits: tuple[Tensor, ...]
    sampled: tuple[int | None, ...]


class ModelRunner:
    """One model on one device."""

    def __init__(self, decoder: Decoder, inputs: InputBuilder) -> None:
        self._decoder = decoder
        self._inputs = inputs

    def run(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> StepResult:
        """Run one step of at least one row."""
        logits = self._decoder(self._inputs.build(schedule, assert_writable))
        parts = logits.split([item.num_logits for item in schedule.scheduled])
        return StepResult(parts, tuple(map(_sample, schedule.scheduled, parts)))


def _sample(item: ScheduledSeq, logits: Tensor) -> int | None:
    request = item.sequence.request
    if request.forced_output is not None or item.num_logits == 0:
        return None
    return sample(logits[-1], request.sampling, item.sequence.generator)
