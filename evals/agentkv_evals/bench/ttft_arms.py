"""Arms of a comparison of times to first token: how one is run, and what is told of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from rich.table import Table

from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, TokenSources
from agentkv_evals.bench.rates import Mark, Rates, floor_seconds, flops_of, synchronize
from agentkv_evals.bench.workload import first_token

WARM_ROUNDS = 3
"""Rounds that are dropped: kernels are compiled, and a size of step is captured the second time it comes."""


@dataclass(slots=True, kw_only=True)
class Arm:
    """One arm's runs at one length. `ratio` None is full prefill; `from_host`: what is reused lies in host memory.

    Attributes:
        seconds: until the first token's id is on the host.
        steps: the time of each step on the device.
        after: what the host does for the prompt once its token is out.
    """

    ratio: float | None
    from_host: bool = False
    seconds: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    sources: TokenSources | None = None

    @property
    def name(self) -> str:
        """As shown."""
        place = ", host" if self.from_host else ""
        return "full" if self.ratio is None else f"screened {self.ratio:.0%}{place}"


def play(engine: Engine, request: Request, arm: Arm) -> None:
    """Run a request to its first token."""
    device = engine.config.device
    synchronize(device)
    marks, started = [Mark(device)], time.perf_counter()
    for sources in first_token(engine, request):
        marks.append(Mark(device))
        arm.sources = sources
    arm.seconds.append(time.perf_counter() - started)
    engine.release_finished()
    arm.after.append(time.perf_counter() - started - arm.seconds[-1])
    synchronize(device)
    arm.steps.append([start.until(end) for start, end in pairwise(marks)])
    assert arm.sources is not None, "the request ended without a token"
    assert not arm.sources.fallbacks, f"reuse did not happen: {arm.sources.fallbacks}"
    assert (arm.sources.restored > 0) == arm.from_host, f"{arm.sources.restored} tokens came from host memory"


def record(engine: Engine, length: int, arm: Arm, full: Arm, rates: Rates, weight_bytes: int) -> dict[str, Any]:
    """Figures of an arm, warm-up dropped, beside full prefill."""
    assert arm.sources is not None
    seconds = arm.seconds[WARM_ROUNDS:]
    ratios = sorted(whole / own for whole, own in zip(full.seconds[WARM_ROUNDS:], seconds, strict=True))
    floor = floor_seconds(flops_of(engine.model_config, arm.sources), weight_bytes, rates)
    return {
        "length": length,
        "arm": arm.name,
        "ratio": arm.ratio,
        "from_host": arm.from_host,
        "restored": arm.sources.restored,
        "ttft_ms": [1e3 * value for value in seconds],
        "ttft_ms_median": 1e3 * median(seconds),
        "after_ms_median": 1e3 * median(arm.after[WARM_ROUNDS:]),
        "steps_ms_median": [1e3 * median(step) for step in zip(*arm.steps[WARM_ROUNDS:], strict=False)],
        "times_faster": ratios,
        "times_faster_median": median(ratios),
        "floor_ms": 1e3 * floor,
        "share_of_roofline": floor / median(seconds),
        "row_layers": arm.sources.row_layers,
        "row_layers_of_full": length * engine.model_config.num_layers,
        "reused": arm.sources.reused,
        "repaired": arm.sources.repaired,
        "computed": arm.sources.computed,
    }


def table(records: Sequence[dict[str, Any]], title: str) -> Table:
    """The arms' records as shown."""
    table = Table(title=f"time to first token, {title} (ms; rows: row-layers; floor: roofline)", padding=(0, 0))
    titles = "arm", "TTFT", "min..max", "steps", "faster", "min..max", "rows", "floor", "share"
    for column in titles:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for record in records:
        ttft, faster = record["ttft_ms"], record["times_faster"]
        table.add_row(
            record["arm"],
            f"{record['ttft_ms_median']:.1f}",
            f"{min(ttft):.1f}..{max(ttft):.1f}",
            " + ".join(f"{step:.1f}" for step in record["steps_ms_median"]),
            f"{record['times_faster_median']:.2f}",
            f"{faster[0]:.2f}..{faster[-1]:.2f}",
            f"{record['row_layers'] / record['row_layers_of_full']:.1%}",
            f"{record['floor_ms']:.1f}",
            f"{record['share_of_roofline']:.0%}",
        )
    return table
