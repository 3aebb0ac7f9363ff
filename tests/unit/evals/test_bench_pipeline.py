"""The benchmark of a pipeline's budgets: loads are as asked for, figures mean what they say, runs go on."""

import io
import json
import statistics
from dataclasses import replace

import pytest
from rich.console import Console

from agentkv.errors import ConfigError
from agentkv_engine.pipeline.messages import StepTimes
from agentkv_engine.scheduler.budget import FixedBudget
from agentkv_evals.bench.pipeline.arms import NAMES, arm
from agentkv_evals.bench.pipeline.drive import Driven, Timed
from agentkv_evals.bench.pipeline.figures import figures
from agentkv_evals.bench.pipeline.load import Arrival, arrivals
from agentkv_evals.bench.pipeline.run import PipelineSettings, run_pipeline

QUICK = PipelineSettings(
    shape="small",
    stages=2,
    lengths="sharegpt",
    rates=(8.0,),
    arms=("fixed-64", "throttling-blocking"),
    seeds=(0,),
    seconds=1.0,
    scale=0.05,
    kv_memory=16 << 20,
    max_sequences=16,
    slo_ttft=20.0,
    slo_tpot=5.0,
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
    assert {arm(name, 4).blocking for name in NAMES} == {False, True}
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
    assert run_pipeline(settings, console)["runs"] == content["runs"], "nothing was left to do"
    with pytest.raises(ConfigError, match="other settings"):
        run_pipeline(replace(settings, scale=0.1), console)
