"""The benchmark of time to first token runs on CPU; what its figures mean is checked, not how large they are."""

import io
import json

import pytest
from rich.console import Console

from agentkv.errors import ConfigError
from agentkv_evals.bench.rates import Rates, floor_seconds
from agentkv_evals.bench.run import run_ttft


def run_small(tmp_path, **options):
    file = tmp_path / "figures.json"
    defaults = {"shape": "small", "lengths": [256], "ratios": [0.1], "rounds": 1, "device": "cpu", "seed": 0}
    records = run_ttft(**defaults | options, json_file=file, console=Console(file=io.StringIO()))
    return records, json.loads(file.read_text(encoding="utf-8"))


def test_both_arms_are_measured_and_written(tmp_path) -> None:
    records, written = run_small(tmp_path)
    assert written["arms"] == records
    full, screened = records
    assert full["row_layers"] == full["row_layers_of_full"] == 256 * 4
    assert full["reused"] == 0
    assert screened["reused"] + screened["repaired"] + screened["computed"] == 256
    assert screened["computed"] == round(0.03 * 256)
    assert 0.1 < screened["row_layers"] / screened["row_layers_of_full"] < 0.2
    assert len(full["ttft_ms"]) == len(screened["ttft_ms"]) == 1
    assert len(screened["steps_ms_median"]) == 2  # probe, then the planned rows
    assert full["times_faster_median"] == 1


def test_a_prompt_beyond_the_context_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="131072"):
        run_small(tmp_path, lengths=[131_072])


def test_a_phase_takes_at_least_one_pass_over_the_weights() -> None:
    rates = Rates(flops=100.0, bytes=10.0)
    assert floor_seconds({"probe": 0, "rest": 1000}, 20, rates) == 10.0
    assert floor_seconds({"probe": 100, "rest": 1000}, 20, rates) == 12.0
