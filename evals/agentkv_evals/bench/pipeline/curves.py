"""What a simulation gives for other numbers of stages, and how far it is off for as many as ran."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from agentkv.errors import ConfigError
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_evals.bench.pipeline.arms import Arm, arm
from agentkv_evals.bench.pipeline.costs import StageCosts
from agentkv_evals.bench.pipeline.drive import drive
from agentkv_evals.bench.pipeline.settings import MOST_ROWS, PipelineSettings, arrivals_of, figures_of, layers_of
from agentkv_evals.bench.pipeline.simulated import SimulatedClock, SimulatedModel, SimulatedRunner
from agentkv_evals.bench.shapes import SHAPES, device_dtype


def simulate(settings: PipelineSettings, content: dict[str, Any], arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """Curves for other numbers of stages. Raises ConfigError: nothing was measured that tells costs."""
    if content["costs"] is None:
        raise ConfigError("a simulation takes its costs from a pipeline that ran: give --stages 2 or more")
    found = {(run["arm"], run["rate"], run["seed"]): run["costs"] for run in content["runs"] if "costs" in run}
    shape = SHAPES[settings.shape]
    for num_stages in settings.simulate:
        grown = num_stages / settings.stages
        clock = SimulatedClock()
        runner = SimulatedRunner(clock, StageCosts(**content["costs"]), layers_of(settings, num_stages))
        config = EngineConfig(
            kv_memory=int(settings.kv_memory * grown),
            max_rows_per_step=MOST_ROWS,
            max_sequences=max(1, int(settings.max_sequences * grown)),
        )
        engine = Engine(SimulatedModel(shape, device_dtype(content["on"]), runner), config)
        for each, rate, seed in product(arms, settings.rates, settings.seeds):
            runner.reset(StageCosts(**found.get((each.name, rate, seed), content["costs"])))
            grown_arm = arm(each.name, num_stages)
            runner.max_under_way = grown_arm.under_way
            engine.use_budget(grown_arm.budget)
            coming = arrivals_of(settings, rate * grown, seed)
            driven = drive(engine, coming, most_seconds=settings.seconds + settings.patience, clock=clock)
            told = figures_of(settings, driven, ()) | {"driver_cores": None}
            told["stages_idle"] = [1 - busy / driven.ended for busy in runner.busy]
            yield {"arm": _simulated_name(each.name, num_stages), "rate": rate * grown, "seed": seed, **told}


def errors(settings: PipelineSettings, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """By how much the simulation of as many stages as ran differs from them, as shares of what was measured: tokens a
    second, and medians of times."""
    simulated = {(run["arm"], run["rate"], run["seed"]): run for run in content["simulated"]}
    for run in content["runs"]:
        same = simulated.get((_simulated_name(run["arm"], settings.stages), run["rate"], run["seed"]))
        if same is None:
            continue
        pairs = {"throughput": (same["tokens_per_second"], run["tokens_per_second"])}
        for name in ("tpot", "ttft"):
            if same[name] is not None and run[name] is not None:
                pairs[name] = (same[name]["p50"], run[name]["p50"])
        shares = {name: ours / theirs - 1 for name, (ours, theirs) in pairs.items() if theirs}
        yield {"arm": run["arm"], "rate": run["rate"], "seed": run["seed"], **shares}


def _simulated_name(name: str, num_stages: int) -> str:
    return f"{name}, {num_stages} stages"
