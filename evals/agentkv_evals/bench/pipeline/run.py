"""`agentkv bench pipeline`, once its options are read: arms take turns at every rate and seed; a run goes on where it
was cut off."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError
from agentkv_engine.config import EngineConfig, PipelineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.random_weights import RandomWeights, random_decoder
from agentkv_engine.pipeline.model import PipelineModel
from agentkv_engine.pipeline.runner import PipelineRunner
from agentkv_evals.bench.pipeline.arms import Arm, arm
from agentkv_evals.bench.pipeline.drive import drive
from agentkv_evals.bench.pipeline.figures import figures
from agentkv_evals.bench.pipeline.load import LENGTHS, arrivals
from agentkv_evals.bench.run import device_here
from agentkv_evals.bench.shapes import SHAPES, device_dtype
from agentkv_evals.comparison.environment import environment

WARM_SHARE = 0.2
"""Of the seconds: what comes in them is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """The command's options.

    Attributes:
        stages: processes; 1 runs the model in this one.
        kv_memory: bytes, of all stages.
        slo_ttft, slo_tpot: seconds.
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
                result = _run(engine, settings, each, rate, seed)
                content["runs"].append({"arm": each.name, "rate": rate, "seed": seed, **result})
                console.print(f"{each.name} at {rate}/s, seed {seed}: {result['tokens_per_second']:.0f} tokens/s")
                _write(settings, content)
    console.print(_table(content))
    return content


def _run(engine: Engine, settings: PipelineSettings, each: Arm, rate: float, seed: int) -> dict[str, Any]:
    coming = arrivals(settings.lengths, rate=rate, seconds=settings.seconds, scale=settings.scale, seed=seed)
    engine.use_budget(each.budget)
    runner = engine._runner
    if isinstance(runner, PipelineRunner):
        runner.max_under_way = 1 if each.blocking else settings.stages
        runner.times.clear()
    driven = drive(engine, coming, most_seconds=settings.seconds + settings.patience)
    times = list(runner.times) if isinstance(runner, PipelineRunner) else []
    window = (WARM_SHARE * settings.seconds, settings.seconds)
    return figures(driven, times, window=window, slo=(settings.slo_ttft, settings.slo_tpot))


def _warm_up(engine: Engine, settings: PipelineSettings) -> None:
    """Steps of all sizes, so that kernels are there and the stages' patience knows them."""
    for name in ("fixed-4096", "fixed-256"):
        engine.use_budget(arm(name, settings.stages).budget)
        coming = arrivals(settings.lengths, rate=8.0, seconds=1.0, scale=settings.scale, seed=-1)
        drive(engine, coming, most_seconds=120)


@contextmanager
def _engine(settings: PipelineSettings, device: str) -> Iterator[Engine]:
    shape, dtype = SHAPES[settings.shape], device_dtype(device)
    config = EngineConfig(
        kv_memory=settings.kv_memory,
        max_rows_per_step=4096,
        max_sequences=settings.max_sequences,
        device=device,
        dtype=dtype,
        pipeline=PipelineConfig(num_stages=settings.stages) if settings.stages > 1 else None,
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
    content = {"benchmark": "pipeline", "settings": told, "environment": environment(), "on": device, "runs": []}
    file = settings.json_file
    if file is None or not file.exists():
        return content
    found = json.loads(file.read_text(encoding="utf-8"))
    if (found.get("benchmark"), found.get("settings"), found.get("on")) != ("pipeline", told, device):
        raise ConfigError(f"{file} holds another benchmark, or other settings: give another file, or the same options")
    return found


_MAY_GROW = ("rates", "arms", "seeds", "json_file", "patience", "device")
"""Settings in which a run that goes on may differ."""


def _write(settings: PipelineSettings, content: dict[str, Any]) -> None:
    if settings.json_file is not None:
        settings.json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _table(content: dict[str, Any]) -> Table:
    table = Table("arm", "rate", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99", "SLO", "rows CoV", "idle", "driver")
    for run in sorted(content["runs"], key=lambda run: (run["rate"], run["seed"])):
        ttft, tpot = run["ttft"] or {}, run["tpot"] or {}
        table.add_row(
            f"{run['arm']} ({run['seed']})",
            f"{run['rate']:g}",
            f"{run['tokens_per_second']:.0f}",
            *(f"{1e3 * part.get(name, float('nan')):.0f} ms" for part in (ttft, tpot) for name in ("p50", "p99")),
            "-" if run["slo_attainment"] is None else f"{run['slo_attainment']:.0%}",
            "-" if run["rows_variation"] is None else f"{run['rows_variation']:.2f}",
            " ".join(f"{share:.0%}" for share in run["stages_idle"]),
            f"{run['driver_cores']:.2f}",
        )
    return table
