"""A pipeline in simulated time: the engine's own scheduler and pool, over stages that only take time.

What comes out is a simulation, to be called so wherever it is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agentkv_engine.config import EngineConfig
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.runner.runner import PoolPlan
from agentkv_engine.sampling.result import Sampled
from agentkv_engine.scheduler.output import SchedulerOutput, SeqResult
from agentkv_evals.bench.pipeline.costs import StageCosts, StepSize

TOKEN = 0
"""What simulated models say."""


class SimulatedClock:
    """Time that passes when nothing else can happen; implements `Clock`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._arrivals: Sequence[float] = ()

    def now(self) -> float:
        """See `Clock.now`."""
        return self._now

    def start(self, arrivals: Sequence[float]) -> None:
        """See `Clock.start`."""
        self._now, self._arrivals = 0.0, tuple(arrivals)

    def stop(self) -> None:
        """See `Clock.stop`."""

    def sleep_until(self, at: float) -> None:
        """See `Clock.sleep_until`."""
        self._now = max(self._now, at)

    def next_arrival(self) -> float:
        """When the next request comes."""
        return next((at for at in self._arrivals if at > self._now), float("inf"))


@dataclass(frozen=True, slots=True)
class _Simulated:
    """A step that comes back at a time; implements `Pending`."""

    clock: SimulatedClock
    schedule: SchedulerOutput
    back: float

    def arrives(self) -> bool:
        """See `Pending.arrives`: a request that comes before interrupts."""
        coming = self.clock.next_arrival()
        self.clock.sleep_until(min(self.back, coming))
        return self.back <= coming

    def result(self) -> list[SeqResult]:
        """See `Pending.result`."""
        self.clock.sleep_until(self.back)
        nothing = torch.empty(0, 0)
        return [
            SeqResult(logits=nothing, sampled=Sampled(TOKEN) if item.samples else None)
            for item in self.schedule.scheduled
        ]


class SimulatedRunner:
    """Implements `Runner` in simulated time: every stage runs its steps in order, each when the one before has passed
    it on. There is no KV: what reads any fails."""

    prepares = False
    is_ready = True
    tensors: Any = None
    observer: Any = None

    def __init__(self, clock: SimulatedClock, costs: StageCosts, layers: Sequence[int]) -> None:
        self.max_under_way = len(layers)
        self._clock = clock
        self._costs = costs
        self._layers = layers
        self._free = [0.0] * len(layers)
        self.busy = [0.0] * len(layers)

    def submit(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> _Simulated:  # noqa: ARG002
        """See `Runner.submit`."""
        self._clock.sleep_until(self._clock.now() + self._costs.driver)
        size, ready = StepSize.of(schedule), self._clock.now() + self._costs.order
        for stage, num_layers in enumerate(self._layers):
            last = stage == len(self._layers) - 1
            seconds = self._costs.stage(size, num_layers, is_last=last)
            self._free[stage] = max(ready, self._free[stage]) + seconds
            self.busy[stage] += seconds
            ready = self._free[stage] + self._costs.transfer
        return _Simulated(self._clock, schedule, self._free[-1] + self._costs.order)

    def prepare(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> bool:  # noqa: ARG002
        """See `Runner.prepare`."""
        return False

    def wait_until_ready(self, timeout: float) -> bool:  # noqa: ARG002
        """See `Runner.wait_until_ready`."""
        return True

    def interrupt(self) -> None:
        """See `Runner.interrupt`: arrivals are known."""

    def close(self) -> None:
        """See `Runner.close`."""

    def reset(self, costs: StageCosts) -> None:
        """Time begins anew, with these costs."""
        self._costs = costs
        self._free, self.busy = [0.0] * len(self._layers), [0.0] * len(self._layers)


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """Implements `RemoteModel`."""

    config: ModelConfig
    dtype: torch.dtype
    runner: SimulatedRunner

    def start(self, config: EngineConfig, plan: PoolPlan) -> SimulatedRunner:  # noqa: ARG002
        """See `RemoteModel.start`."""
        return self.runner
