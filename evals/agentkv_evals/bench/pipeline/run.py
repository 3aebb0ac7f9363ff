"""`agentkv bench pipeline`, once its options are read: arms take turns at every rate and seed; a run goes on where it
was cut off."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
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
from agentkv_engine.pipeline.split import split_layers
from agentkv_evals.bench.pipeline.arms import Arm, arm
from agentkv_evals.bench.pipeline.costs import StageCosts, fit
from agentkv_evals.bench.pipeline.drive import Driven, drive
from agentkv_evals.bench.pipeline.figures import figures
from agentkv_evals.bench.pipeline.load import LENGTHS, Arrival, arrivals
from agentkv_evals.bench.pipeline.simulated import SimulatedClock, SimulatedModel, SimulatedRunner
from agentkv_evals.bench.run import device_here
from agentkv_evals.bench.shapes import SHAPES, device_dtype
from agentkv_evals.comparison.environment import environment

WARM_SHARE = 0.2
"""Of the seconds: what comes in them is not counted."""

GRACE = 60.0
"""Seconds that a step may take beyond what is expected: kernels of new sizes are compiled meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """The command's options.

    Attributes:
        stages: processes; 1 runs the model in this one.
        kv_memory: bytes, of all stages.
        slo_ttft, slo_tpot: seconds.
        simulate: numbers of stages that are simulated with the costs of those that ran, at rates and KV memory in
            proportion.
        warm: seconds of requests at the highest rate before the first arm, for kernels and graphs.
        patience: seconds after the last arrival after which a run is cut off.
    """

    shape: str
    stages: int
    lengths: str
    rates: tuple[float, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    scale: float
    kv_memory: int
    max_sequences: int
    slo_ttft: float
    slo_tpot: float
    simulate: tuple[int, ...]
    warm: float
    patience: float
    device: str | None
    json_file: Path | None


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
                    {"arm": each.name, "rate": rate, "seed": seed, **_figures(settings, driven, times)}
                )
                if times and len(times) == settings.stages * len(driven.sizes):
                    seconds = driven.cpu * driven.ended / len(driven.sizes)
                    costs = fit(driven.sizes, times, _layers(settings, settings.stages), driver=seconds)
                    content["costs"] = content["runs"][-1]["costs"] = asdict(costs)
                told = content["runs"][-1]
                console.print(f"{each.name} at {rate}/s, seed {seed}: {told['tokens_per_second']:.0f} tokens/s")
                _write(settings, content)
    console.print(_table("measured", content["runs"]))
    if settings.simulate:
        content["simulated"] = list(_simulate(settings, content, arms))
        _write(settings, content)
        console.print(_table("SIMULATED", content["simulated"]))
    return content


def _simulate(settings: PipelineSettings, content: dict[str, Any], arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """Curves for other numbers of stages. Raises ConfigError: nothing was measured that tells costs."""
    if content["costs"] is None:
        raise ConfigError("a simulation takes its costs from a pipeline that ran: give --stages 2 or more")
    costs, shape = StageCosts(**content["costs"]), SHAPES[settings.shape]
    for num_stages in settings.simulate:
        grown = num_stages / settings.stages
        clock = SimulatedClock()
        runner = SimulatedRunner(clock, costs, _layers(settings, num_stages))
        config = EngineConfig(kv_memory=int(settings.kv_memory * grown), max_sequences=settings.max_sequences)
        engine = Engine(SimulatedModel(shape, device_dtype(content["on"]), runner), config)
        for each, rate, seed in product(arms, settings.rates, settings.seeds):
            runner.reset()
            grown_arm = arm(each.name, num_stages)
            runner.max_under_way = grown_arm.under_way
            engine.use_budget(grown_arm.budget)
            coming = _arrivals(settings, rate * grown, seed)
            driven = drive(engine, coming, most_seconds=settings.seconds + settings.patience, clock=clock)
            told = _figures(settings, driven, ()) | {"driver_cores": None}
            told["stages_idle"] = [1 - busy / driven.ended for busy in runner.busy]
            yield {"arm": f"{each.name}, {num_stages} stages", "rate": rate * grown, "seed": seed, **told}


def _layers(settings: PipelineSettings, num_stages: int) -> list[int]:
    stages = split_layers(PipelineConfig(num_stages=num_stages), SHAPES[settings.shape].num_layers)
    return [len(layers) for layers in stages]


def _arrivals(settings: PipelineSettings, rate: float, seed: int) -> tuple[Arrival, ...]:
    return arrivals(settings.lengths, rate=rate, seconds=settings.seconds, scale=settings.scale, seed=seed)


def _drive(
    engine: Engine, settings: PipelineSettings, each: Arm, rate: float, seed: int
) -> tuple[Driven, list[StepTimes]]:
    """Run an arm; what it did, and what its stages told."""
    engine.use_budget(each.budget)
    runner = engine._runner
    if isinstance(runner, PipelineRunner):
        runner.max_under_way = each.under_way
        runner.times.clear()
    driven = drive(engine, _arrivals(settings, rate, seed), most_seconds=settings.seconds + settings.patience)
    return driven, runner.settled_times() if isinstance(runner, PipelineRunner) else []


def _figures(settings: PipelineSettings, driven: Driven, times: Sequence[StepTimes]) -> dict[str, Any]:
    window = (WARM_SHARE * settings.seconds, settings.seconds)
    return figures(driven, times, window=window, slo=(settings.slo_ttft, settings.slo_tpot))


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
        max_rows_per_step=4096,
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
