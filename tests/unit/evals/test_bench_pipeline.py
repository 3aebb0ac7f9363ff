"""The benchmark of a pipeline's budgets: loads are as asked for, figures mean what they say, runs go on."""

import io
import json
import random
import statistics
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from agentkv.errors import ConfigError
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.pipeline.messages import StepTimes
from agentkv_engine.scheduler.budget import FixedBudget
from agentkv_engine.scheduler.token_throttling import TokenThrottling
from agentkv_evals.bench.pipeline.arms import NAMES, arm
from agentkv_evals.bench.pipeline.costs import StageCosts, StepSize, fit
from agentkv_evals.bench.pipeline.drive import Driven, Timed, drive
from agentkv_evals.bench.pipeline.figures import figures
from agentkv_evals.bench.pipeline.load import Arrival, arrivals
from agentkv_evals.bench.pipeline.run import run_pipeline
from agentkv_evals.bench.pipeline.settings import PipelineSettings
from agentkv_evals.bench.pipeline.simulated import SimulatedClock, SimulatedModel, SimulatedRunner
from agentkv_evals.bench.shapes import SHAPES

QUICK = PipelineSettings(
    shape="small",
    stages=2,
    lengths="sharegpt",
    rates=(12.0,),
    arms=("fixed-64", "throttling-blocking"),
    seeds=(0,),
    seconds=0.6,
    scale=0.05,
    kv_memory=16 << 20,
    max_sequences=16,
    slo_ttft=20.0,
    slo_tpot=5.0,
    simulate=(),
    warm=0.2,
    patience=60.0,
    device="cpu",
    json_file=None,
)


def test_arrivals_are_those_of_the_fit_and_of_the_rate() -> None:
    coming = arrivals("sharegpt", rate=50, seconds=60, scale=1.0, seed=3)
    assert 2700 < len(coming) < 3300
    assert statistics.median(each.prompt for each in coming) == pytest.approx(221, rel=0.1)
    assert statistics.median(each.reply for each in coming) == pytest.approx(157, rel=0.1)
    slower = arrivals("sharegpt", rate=5, seconds=60, scale=1.0, seed=3)
    assert [each.prompt for each in slower] == [each.prompt for each in coming[: len(slower)]]


def test_every_arm_has_a_budget() -> None:
    assert arm("fixed-300", 2).budget == FixedBudget(300)
    assert {arm(name, 4).under_way for name in NAMES} == {1, 4, 5}
    assert arm("fixed-300-ahead", 4).under_way == 5
    with pytest.raises(ConfigError, match="no arm 'best'"):
        arm("best", 2)


def test_figures_count_what_came_in_the_window() -> None:
    def timed(at: float, first: float | None, last: float | None, tokens: int) -> Timed:
        return Timed(arrival=Arrival(at=at, prompt=10, reply=5), first=first, last=last, num_tokens=tokens)

    driven = Driven(
        requests=[timed(1, 2, 3, 5), timed(11, 12, 13, 5), timed(12, 16, 20, 5), timed(13, None, None, 0)],
        rows=[(1, 999), (11, 10), (12, 30)],
        tokens=[(5, 100), (12, 15), (19, 25)],
    )
    stages = [StepTimes(1, 0, 10.0, 10.0, 11.0, 12.0), StepTimes(2, 0, 12.0, 12.0, 13.0, 14.0)]
    told = figures(driven, stages, window=(10, 20), slo=(2.0, 0.6))
    assert (told["requests"], told["ended"]) == (3, 2)
    assert told["tokens_per_second"] == 4.0
    assert told["ttft"]["p50"] == 2.5
    assert told["tpot"]["p50"] == 0.625
    assert told["slo_attainment"] == pytest.approx(1 / 3)
    assert (told["rows_per_step"], told["rows_variation"]) == (20, 0.5)
    assert told["stages_idle"] == [0.5]


def test_arms_run_and_a_cut_off_run_goes_on(tmp_path) -> None:
    file, console = tmp_path / "figures.json", Console(file=io.StringIO())
    settings = replace(QUICK, json_file=file)
    content = run_pipeline(settings, console)
    assert content == json.loads(file.read_text(encoding="utf-8"))
    assert [run["arm"] for run in content["runs"]] == list(QUICK.arms)
    for run in content["runs"]:
        assert run["ended"] == run["requests"] > 0
        assert len(run["stages_idle"]) == 2
        assert run["driver_cores"] > 0
    assert content["costs"]["layer"] + content["costs"]["per_row"] > 0
    content = run_pipeline(replace(settings, simulate=(2, 4)), console)
    simulated = content["simulated"]
    assert [each["arm"] for each in content["errors"]] == list(QUICK.arms)
    for each, ours, theirs in zip(content["errors"], simulated, content["runs"], strict=False):
        assert each["throughput"] == ours["tokens_per_second"] / theirs["tokens_per_second"] - 1
    assert [run["arm"] for run in simulated[:3]] == [
        f"{QUICK.arms[0]}, 2 stages",
        f"{QUICK.arms[1]}, 2 stages",
        f"{QUICK.arms[0]}, 4 stages",
    ]
    assert all(run["ended"] == run["requests"] > 0 for run in simulated)
    assert "SIMULATED" in console.file.getvalue()
    assert run_pipeline(settings, console)["runs"] == content["runs"], "nothing was left to do"
    with pytest.raises(ConfigError, match="other settings"):
        run_pipeline(replace(settings, scale=0.1), console)


def test_costs_are_found_again() -> None:
    costs = StageCosts(
        layer=1e-3, per_row=2e-5, per_key=1e-8, sampling=5e-4, per_sample=1e-5, transfer=1e-4, order=2e-4, driver=0
    )
    lot = random.Random(0)
    sizes = [StepSize(rows, rows * lot.randint(1, 900), lot.randint(0, 8)) for rows in lot.choices(range(1, 600), k=60)]
    times, at = [], 0.0
    for number, size in enumerate(sizes):
        for stage, layers in enumerate((3, 2)):
            seconds = costs.stage(size, layers, is_last=stage == 1)
            times.append(StepTimes(number, stage, at, at + 2e-4, at + 1e-4, at + 1e-4 + seconds))
            at += 1e-4 + seconds
    found = fit(sizes, times, (3, 2), driver=3e-4)
    for name in ("layer", "per_row", "per_key", "sampling", "per_sample", "transfer", "order"):
        assert getattr(found, name) == pytest.approx(getattr(costs, name), rel=1e-3), name


def test_stages_overlap_in_simulated_time() -> None:
    """Four stages of equal cost: one decoding request goes through all, four requests keep all busy."""
    costs = StageCosts(layer=0.25, per_row=0, per_key=0, sampling=0, per_sample=0, transfer=0, order=0, driver=0)
    spans = []
    for num_requests in (1, 4):
        clock = SimulatedClock()
        runner = SimulatedRunner(clock, costs, (1, 1, 1, 1))
        model = SimulatedModel(SHAPES["small"], torch.float32, runner)
        engine = Engine(model, EngineConfig(kv_memory=1 << 24), budget=TokenThrottling(num_stages=4))
        coming = [Arrival(at=0.0, prompt=1, reply=20)] * num_requests
        spans.append(drive(engine, coming, most_seconds=1000, clock=clock).ended)
    assert spans[0] == 20.0
    assert spans[1] < 22
