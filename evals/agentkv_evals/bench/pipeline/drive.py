"""Runs one arm: requests are given to the engine when they come, and timed from then."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from agentkv_engine.engine import Engine
from agentkv_engine.runner.runner import Pending
from agentkv_engine.scheduler.output import SchedulerOutput
from agentkv_evals.bench.pipeline.costs import StepSize
from agentkv_evals.bench.pipeline.load import Arrival


@dataclass(slots=True, kw_only=True)
class Timed:
    """One request: seconds from the start of the run."""

    arrival: Arrival
    first: float | None = None
    last: float | None = None
    num_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Driven:
    """What an arm did.

    Attributes:
        rows: of each step, with the time at which it was started.
        sizes: the same steps' sizes.
        tokens: (time, prompt and reply tokens) done.
        cpu: share of a core that the driver took.
        ended: when the last request ended, or the run was cut off.
    """

    requests: list[Timed]
    rows: list[tuple[float, int]] = field(default_factory=list)
    sizes: list[StepSize] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    cpu: float = 0.0
    ended: float = 0.0


class Clock(Protocol):
    """Measures a run."""

    def start(self, arrivals: Sequence[float]) -> None:
        """Begin at 0; requests come at these times."""
        ...

    def now(self) -> float:
        """Seconds since the start."""
        ...

    def sleep_until(self, at: float) -> None:
        """Nothing is to be done before."""
        ...

    def stop(self) -> None:
        """The run is over."""
        ...


class RealClock:
    """Time as it passes; implements `Clock`. A thread interrupts the engine's waits when a request comes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started = 0.0
        self._over = threading.Event()
        self._waker: threading.Thread | None = None

    def start(self, arrivals: Sequence[float]) -> None:
        """See `Clock.start`."""
        self._started = time.perf_counter()
        self._waker = threading.Thread(target=self._wake, args=(arrivals,), daemon=True)
        self._waker.start()

    def now(self) -> float:
        """See `Clock.now`."""
        return time.perf_counter() - self._started

    def sleep_until(self, at: float) -> None:
        """See `Clock.sleep_until`."""
        time.sleep(max(0.0, at - self.now()))

    def stop(self) -> None:
        """See `Clock.stop`."""
        self._over.set()
        if self._waker is not None:
            self._waker.join()

    def _wake(self, arrivals: Sequence[float]) -> None:
        for at in arrivals:
            if self._over.wait(max(0.0, at - self.now())):
                return
            self._engine.interrupt()


def drive(engine: Engine, coming: Sequence[Arrival], *, most_seconds: float, clock: Clock | None = None) -> Driven:
    """Run requests to their ends, or for so many seconds.

    Raises:
        EngineError: a request failed.
    """
    clock = clock or RealClock(engine)
    made = [arrival.request(number, engine.model_config.vocab_size) for number, arrival in enumerate(coming)]
    driven = Driven(requests=[Timed(arrival=arrival) for arrival in coming])
    unwatch = _watch_steps(engine, driven, clock)
    used = time.process_time()
    clock.start([arrival.at for arrival in coming])
    try:
        given = 0
        while (now := clock.now()) < most_seconds:
            while given < len(made) and coming[given].at <= now:
                engine.add(made[given])
                given += 1
            if engine.has_work:
                _step(engine, driven, clock)
            elif given == len(made):
                break
            else:
                clock.sleep_until(coming[given].at)
        driven.ended = clock.now()
        driven.cpu = (time.process_time() - used) / driven.ended
    finally:
        clock.stop()
        unwatch()
        for number in range(len(made)):
            engine.abort(str(number))
        engine.drain()
    return driven


def _step(engine: Engine, driven: Driven, clock: Clock) -> None:
    for output in engine.step():
        if output.error is not None:
            raise output.error
        timed, now = driven.requests[int(output.request_id)], clock.now()
        count = len(output.token_ids)
        if timed.first is None:
            timed.first = now
            count += timed.arrival.prompt
        timed.num_tokens += len(output.token_ids)
        timed.last = now if output.finish_reason is not None else None
        driven.tokens.append((now, count))


def _watch_steps(engine: Engine, driven: Driven, clock: Clock) -> Callable[[], None]:
    """Note the rows of every step; returns what ends that."""
    runner, name = engine._runner, "submit"
    submit = runner.submit

    def noted(schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> Pending:
        driven.rows.append((clock.now(), schedule.num_rows))
        driven.sizes.append(StepSize.of(schedule))
        return submit(schedule, assert_writable)

    setattr(runner, name, noted)
    return lambda: delattr(runner, name)
