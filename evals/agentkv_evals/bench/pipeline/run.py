"""`agentkv bench pipeline`, once its options are read: arms take turns at every rate and seed; a run goes on where it
was cut off."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError
from agentkv_engine.config import EngineConfig, PipelineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.random_weights import RandomWeights, random_decoder
from agentkv_engine.pipeline.messages import StepTimes
from agentkv_engine.pipeline.model import PipelineModel
from agentkv_engine.pipeline.runner import PipelineRunner
from agentkv_evals.bench.pipeline.arms import Arm, arm
from agentkv_evals.bench.pipeline.costs import fit
from agentkv_evals.bench.pipeline.curves import errors, simulate
from agentkv_evals.bench.pipeline.drive import Driven, drive
from agentkv_evals.bench.pipeline.load import LENGTHS, arrivals
from agentkv_evals.bench.pipeline.settings import MOST_ROWS, PipelineSettings, arrivals_of, figures_of, layers_of
from agentkv_evals.bench.run import device_here
from agentkv_evals.bench.shapes import SHAPES, device_dtype
from agentkv_evals.comparison.environment import environment

GRACE = 60.0
"""Seconds that a step may take beyond what is expected: kernels of new sizes are compiled meanwhile."""


def run_pipeline(settings: PipelineSettings, console: Console | None = None) -> dict[str, Any]:
    """Run what the file does not have yet; returns what is written to it.

    Raises:
        ConfigError: options that can't be used, or a file of another benchmark.
    """
    console = console or Console()
    device = device_here(settings.device)
    if settings.lengths not in LENGTHS:
        raise ConfigError(f"there are no lengths {settings.lengths!r}: take {', '.join(LENGTHS)}")
    arms = [arm(name, settings.stages) for name in settings.arms]
    content = _begun(settings, device)
    done = {(run["arm"], run["rate"], run["seed"]) for run in content["runs"]}
    todo = [
        (each, rate, seed)
        for seed in settings.seeds
        for rate in settings.rates
        for each in arms
        if (each.name, rate, seed) not in done
    ]
    if todo:
        with _engine(settings, device) as engine:
            _warm_up(engine, settings)
            for each, rate, seed in todo:
                driven, times = _drive(engine, settings, each, rate, seed)
                content["runs"].append(
                    {"arm": each.name, "rate": rate, "seed": seed, **figures_of(settings, driven, times)}
                )
                if times and len(times) == settings.stages * len(driven.sizes):
                    seconds = driven.cpu * driven.ended / len(driven.sizes)
                    costs = fit(driven.sizes, times, layers_of(settings, settings.stages), driver=seconds)
                    content["costs"] = content["runs"][-1]["costs"] = asdict(costs)
                told = content["runs"][-1]
                console.print(f"{each.name} at {rate}/s, seed {seed}: {told['tokens_per_second']:.0f} tokens/s")
                _write(settings, content)
    console.print(_table("measured", content["runs"]))
    if settings.simulate:
        content["simulated"] = list(simulate(settings, content, arms))
        content["errors"] = list(errors(settings, content))
        _write(settings, content)
        console.print(_table("SIMULATED", content["simulated"]))
        for each in content["errors"]:
            told = ", ".join(f"{name} {each[name]:+.0%}" for name in ("throughput", "tpot", "ttft") if name in each)
            console.print(
                f"SIMULATED against measured, {each['arm']} at {each['rate']:g}/s, seed {each['seed']}: {told}"
            )
    return content


def _drive(
    engine: Engine, settings: PipelineSettings, each: Arm, rate: float, seed: int
) -> tuple[Driven, list[StepTimes]]:
    """Run an arm; what it did, and what its stages told."""
    engine.use_budget(each.budget)
    runner = engine._runner
    if isinstance(runner, PipelineRunner):
        runner.max_under_way = each.under_way
        runner.times.clear()
    driven = drive(engine, arrivals_of(settings, rate, seed), most_seconds=settings.seconds + settings.patience)
    return driven, runner.settled_times() if isinstance(runner, PipelineRunner) else []


def _warm_up(engine: Engine, settings: PipelineSettings) -> None:
    """Steps of all sizes, so that kernels are there and the stages' patience knows them."""
    for name in ("fixed-4096", "fixed-256"):
        engine.use_budget(arm(name, settings.stages).budget)
        coming = arrivals(settings.lengths, rate=16.0, seconds=0.5, scale=settings.scale, seed=-1)
        drive(engine, coming, most_seconds=120)
    if settings.warm:
        most = max(settings.rates)
        coming = arrivals(settings.lengths, rate=most, seconds=settings.warm, scale=settings.scale, seed=-2)
        drive(engine, coming, most_seconds=settings.warm)
    if isinstance(engine._runner, PipelineRunner):
        engine._runner.settled_times()


@contextmanager
def _engine(settings: PipelineSettings, device: str) -> Iterator[Engine]:
    shape, dtype = SHAPES[settings.shape], device_dtype(device)
    config = EngineConfig(
        kv_memory=settings.kv_memory,
        max_rows_per_step=MOST_ROWS,
        max_sequences=settings.max_sequences,
        device=device,
        dtype=dtype,
        pipeline=PipelineConfig(num_stages=settings.stages, tell_times=True, grace=GRACE)
        if settings.stages > 1
        else None,
    )
    if settings.stages > 1:
        model = PipelineModel(RandomWeights(config=shape), config)
    else:
        model = random_decoder(shape, dtype=dtype, device=device, seed=0)
    engine = Engine(model, config, revision=f"random {settings.shape}")
    try:
        yield engine
    finally:
        engine.close()


def _begun(settings: PipelineSettings, device: str) -> dict[str, Any]:
    told = {name: value for name, value in asdict(settings).items() if name not in _MAY_GROW}
    content = {
        "benchmark": "pipeline",
        "settings": told,
        "environment": environment(),
        "on": device,
        "costs": None,
        "runs": [],
    }
    file = settings.json_file
    if file is None or not file.exists():
        return content
    found = json.loads(file.read_text(encoding="utf-8"))
    if (found.get("benchmark"), found.get("settings"), found.get("on")) != ("pipeline", told, device):
        raise ConfigError(f"{file} holds another benchmark, or other settings: give another file, or the same options")
    return found


_MAY_GROW = ("rates", "arms", "seeds", "json_file", "warm", "patience", "device", "simulate")
"""Settings in which a run that goes on may differ."""


def _write(settings: PipelineSettings, content: dict[str, Any]) -> None:
    if settings.json_file is not None:
        settings.json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _table(title: str, runs: Sequence[dict[str, Any]]) -> Table:
    columns = ("arm", "rate", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99", "SLO", "rows CoV", "idle", "driver")
    table = Table(*columns, title=title)
    for run in sorted(runs, key=lambda run: (run["rate"], run["seed"])):
        ttft, tpot = run["ttft"] or {}, run["tpot"] or {}
        table.add_row(
            f"{run['arm']} ({run['seed']})",
            f"{run['rate']:g}",
            f"{run['tokens_per_second']:.0f}",
            *(f"{1e3 * part.get(name, float('nan')):.0f} ms" for part in (ttft, tpot) for name in ("p50", "p99")),
            "-" if run["slo_attainment"] is None else f"{run['slo_attainment']:.0%}",
            "-" if run["rows_variation"] is None else f"{run['rows_variation']:.2f}",
            " ".join(f"{share:.0%}" for share in run["stages_idle"]),
            "-" if run["driver_cores"] is None else f"{run['driver_cores']:.2f}",
        )
    return table
