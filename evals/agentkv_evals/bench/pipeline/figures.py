"""What an arm's times mean."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from agentkv_engine.pipeline.messages import StepTimes
from agentkv_evals.bench.pipeline.drive import Driven, Timed

SHARES = (50, 90, 99)


def figures(
    driven: Driven, times: Sequence[StepTimes], *, window: tuple[float, float], slo: tuple[float, float]
) -> dict[str, Any]:
    """Figures of one run.

    Args:
        driven: the run.
        times: what the stages told of its steps; empty where there are none.
        window: seconds from the start; requests that came, and tokens that were done, in it are counted.
        slo: most seconds to the first token, and a token after it.
    """
    start, end = window
    counted = [timed for timed in driven.requests if start <= timed.arrival.at < end]
    ended = [timed for timed in counted if timed.last is not None]
    ttft = [timed.first - timed.arrival.at for timed in ended if timed.first is not None]
    tpot = [_tpot(timed) for timed in ended if timed.num_tokens > 1]
    e2e = [timed.last - timed.arrival.at for timed in ended if timed.last is not None]
    met = sum(_meets(timed, slo) for timed in ended)
    rows = np.asarray([count for at, count in driven.rows if start <= at < end])
    return {
        "requests": len(counted),
        "ended": len(ended),
        "tokens_per_second": sum(count for at, count in driven.tokens if start <= at < end) / (end - start),
        "requests_per_second": sum(1 for t in driven.requests if t.last and start <= t.last < end) / (end - start),
        "goodput": met / (end - start),
        "slo_attainment": met / len(counted) if counted else None,
        "ttft": _percentiles(ttft),
        "tpot": _percentiles(tpot),
        "e2e": _percentiles(e2e),
        "rows_per_step": float(rows.mean()) if len(rows) else None,
        "rows_variation": float(rows.std() / rows.mean()) if len(rows) else None,
        "stages_idle": _idle(times),
        "driver_cores": driven.cpu,
    }


def _tpot(timed: Timed) -> float:
    assert timed.first is not None
    assert timed.last is not None
    return (timed.last - timed.first) / (timed.num_tokens - 1)


def _meets(timed: Timed, slo: tuple[float, float]) -> bool:
    assert timed.first is not None
    in_time = timed.first - timed.arrival.at <= slo[0]
    return in_time and (timed.num_tokens < 2 or _tpot(timed) <= slo[1])


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"p{share}": float(np.percentile(values, share)) for share in SHARES}


def _idle(times: Sequence[StepTimes]) -> list[float]:
    """Share of the time between its first and last step that each stage's process spent waiting for activations or
    orders. On a GPU a process runs ahead of its device: this is not the device's idle share."""
    shares = []
    for stage in sorted({each.stage for each in times}):
        mine = [each for each in times if each.stage == stage]
        span = mine[-1].done - mine[0].ordered
        shares.append(1 - sum(each.done - each.arrived for each in mine) / span if span > 0 else 0.0)
    return shares
