"""Runs one arm: requests are given to the engine when they come, and timed from then."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agentkv_engine.engine import Engine
from agentkv_engine.runner.runner import Pending
from agentkv_engine.scheduler.output import SchedulerOutput
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
        tokens: (time, prompt and reply tokens) done.
        cpu: share of a core that the driver took.
        ended: when the last request ended, or the run was cut off.
    """

    requests: list[Timed]
    rows: list[tuple[float, int]] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    cpu: float = 0.0
    ended: float = 0.0


def drive(engine: Engine, coming: Sequence[Arrival], *, most_seconds: float) -> Driven:
    """Run requests to their ends, or for so many seconds.

    Raises:
        EngineError: a request failed.
    """
    requests = [Timed(arrival=arrival) for arrival in coming]
    made = [arrival.request(number, engine.model_config.vocab_size) for number, arrival in enumerate(coming)]
    driven = Driven(requests=requests)
    used, started = time.process_time(), time.perf_counter()
    unwatch = _watch_steps(engine, driven, started)
    over = threading.Event()
    waker = threading.Thread(target=_wake, args=(engine, coming, started, over), daemon=True)
    waker.start()
    try:
        given = 0
        while (now := time.perf_counter() - started) < most_seconds:
            while given < len(made) and coming[given].at <= now:
                engine.add(made[given])
                given += 1
            if engine.has_work:
                _step(engine, driven, started)
            elif given == len(made):
                break
            else:
                time.sleep(max(0.0, coming[given].at - (time.perf_counter() - started)))
    finally:
        over.set()
        waker.join()
        unwatch()
        for number in range(len(made)):
            engine.abort(str(number))
        while engine.has_work:
            engine.step()
        engine.release_finished()
    driven.ended = time.perf_counter() - started
    driven.cpu = (time.process_time() - used) / driven.ended
    return driven


def _step(engine: Engine, driven: Driven, started: float) -> None:
    for output in engine.step():
        if output.error is not None:
            raise output.error
        timed, now = driven.requests[int(output.request_id)], time.perf_counter() - started
        count = len(output.token_ids)
        if timed.first is None:
            timed.first = now
            count += timed.arrival.prompt
        timed.num_tokens += len(output.token_ids)
        timed.last = now if output.finish_reason is not None else None
        driven.tokens.append((now, count))


def _watch_steps(engine: Engine, driven: Driven, started: float) -> Callable[[], None]:
    """Note the rows of every step; returns what ends that."""
    runner, name = engine._runner, "submit"
    submit = runner.submit

    def noted(schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> Pending:
        driven.rows.append((time.perf_counter() - started, schedule.num_rows))
        return submit(schedule, assert_writable)

    setattr(runner, name, noted)
    return lambda: delattr(runner, name)


def _wake(engine: Engine, coming: Sequence[Arrival], started: float, over: threading.Event) -> None:
    """Interrupt the engine's waits when a request comes."""
    for arrival in coming:
        if over.wait(max(0.0, arrival.at - (time.perf_counter() - started))):
            return
        engine.interrupt()
