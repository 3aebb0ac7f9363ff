"""`agentkv calibrate`, and a service that estimates its error and keeps it below a target."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from agentkv.api import ChatMessage, ChatRequest, Reuse
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError, InvalidRequest
from agentkv.screening.calibration import Calibration, Curve, fingerprint
from agentkv.service import Service
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.tasks.sources import TaskName, TaskOptions
from agentkv_evals.calibration.break_even import LENGTHS, BreakEven
from agentkv_evals.calibration.check import run_check
from agentkv_evals.calibration.run import RULES, run_calibration

WORDS = "The committee met at nine in the morning to hear what the three researchers had found in the reports. "


@pytest.fixture(scope="module")
def calibrated(small_model, tmp_path_factory):
    """One of a model of random weights: its attention says little, but the curve is fitted and judged all the same."""
    out = tmp_path_factory.mktemp("calibration")
    task = TaskOptions(name=TaskName.RULER, families="needle,words", items=3, length=200, reply_tokens=2)
    settings = Settings.of(
        model=small_model("qwen2"), task=task, rules=["query_attention"], ratios="0.1,0.3,0.5,0.7", peers=False, out=out
    )
    console = Console(file=io.StringIO(), width=120)
    calibration = run_calibration(settings, out / "calibration.json", quantile=0.9, console=console)
    return calibration, out / "calibration.json", console.file.getvalue()


def test_a_calibration_is_fitted_to_one_family_and_judged_by_the_other(calibrated, small_model):
    calibration, path, shown = calibrated
    assert Calibration.load(path, small_model("qwen2")).curves == calibration.curves
    assert (calibration.measured["fitted"], calibration.measured["judged"]) == (["needle"], ["words"])
    check = calibration.measured["checks"]["query_attention"]
    assert check["prompts"] == 12
    assert calibration.curves["query_attention"].prompts == 24
    assert "covered" in shown
    break_even = calibration.break_even["cpu"]
    assert break_even in (*LENGTHS, 2 * LENGTHS[-1])
    assert f"full prefill from {break_even} reused tokens on" in shown
    assert Calibration.load(path, small_model("qwen2")).break_even == {"cpu": break_even}


def test_a_calibration_is_checked_on_items_that_it_has_not_seen(calibrated, small_model, tmp_path):
    """A target that no plan meets is met by full prefill; one that all meet costs the least plan."""
    _, path, _ = calibrated
    task = TaskOptions(name=TaskName.RULER, families="needle", items=3, first_seed=50, length=200, reply_tokens=2)
    settings = Settings.of(
        model=small_model("qwen2"), task=task, rules=RULES, ratios="0.1,0.5", peers=False, out=tmp_path
    )
    console = Console(file=io.StringIO(), width=160)
    result = run_check(settings, path, targets=(1e-6, 100.0), console=console)
    assert json.loads((tmp_path / "check.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "check.svg").read_text().startswith("<svg")
    assert result["estimates"]["query_attention"]["prompts"] == 6
    full, least = result["targets"]
    assert (full["full"], full["above"], full["same"]) == (1, 0, 1)
    assert full["kl_largest"] < 1e-6
    assert least["work"] < 0.5
    assert (least["full"], least["above"]) == (0, 0)
    assert "query_attention to 1e-06" in console.file.getvalue()
    with pytest.raises(ConfigError, match="name some of query_attention"):
        run_check(replace(settings, arms=settings.arms[:1]), path, targets=(1.0,), console=console)


def test_the_break_even_is_the_least_length_from_which_on_the_rule_wins():
    def shortest(*faster: float) -> int:
        return BreakEven(rule="any", lengths=(32, 64, 128), faster=faster).shortest

    assert [shortest(1.1, 1.2, 1.3), shortest(1.1, 0.9, 1.3), shortest(0.8, 1.0, 1.1)] == [32, 128, 128]
    assert shortest(1.5, 1.5, 0.9) == 256


@pytest.mark.parametrize(("device", "reads"), [("cpu", False), ("cuda", True)])
def test_a_service_reads_no_less_than_what_was_measured_on_its_device(small_model, tmp_path, device, reads):
    model, path = small_model("qwen2"), tmp_path / "calibration.json"
    curve = Curve(left=(1e-9, 100.0), kl=(1e-7, 0.25), quantile=0.9, prompts=12)
    Calibration(model=fingerprint(model), curves={"query_attention": curve}, break_even={device: 1000}).save(path)
    config = ServiceConfig(kv_memory=1 << 24, calibration=path, selector="query_attention(0.2)")
    with Service.open(model, config) as service:
        reuse = asked(service)
    assert (reuse.segments > 0) is reads
    assert ("not_worth" in reuse.misses) is not reads


def asked(service: Service, tenant: str = "") -> object:
    """A chat that reads what another agent was told; its usage."""
    told = ChatMessage(role="user", content=WORDS * 3)
    for system in ("You are the first.", "You are another one altogether, and you read what the first was told."):
        request = ChatRequest(
            messages=(ChatMessage(role="system", content=system), told, ChatMessage(role="user", content="And now?")),
            max_tokens=2,
            reuse=Reuse.SCREENED,
        )
        usage = [delta.usage for delta in service.submit(request, tenant=tenant) if delta.usage][-1]
    return usage.reuse


@pytest.mark.parametrize(("target", "full"), [(None, False), (10.0, False), (1e-6, True), (1e-8, True)])
def test_a_service_estimates_its_error_and_deepens_to_its_target(small_model, tmp_path, target, full):
    model, path = small_model("qwen2"), tmp_path / "calibration.json"
    curve = Curve(left=(1e-9, 100.0), kl=(1e-7, 0.25), quantile=0.9, prompts=12)
    Calibration(model=fingerprint(model), curves={"query_attention": curve}).save(path)
    config = ServiceConfig(kv_memory=1 << 24, calibration=path, target_kl=target, selector="query_attention(0.2)")
    with Service.open(model, config) as service:
        reuse = asked(service)
    if target == 1e-8:  # less than the least estimate: nothing is looked at
        assert reuse.misses["not_worth"] == 1
        assert (reuse.segments, reuse.row_layers) == (0, reuse.full_row_layers)
        return
    assert reuse.segments == 1
    if full:
        assert reuse.reused == 0
        assert reuse.estimated_kl == 0
    else:
        assert 0 < reuse.repaired < reuse.reused
        assert reuse.estimated_kl == 0.25
    assert ("until" in reuse.selector) == (target is not None)


def test_a_target_without_an_estimate_is_refused(small_model, tmp_path):
    model, path = small_model("qwen2"), tmp_path / "calibration.json"
    with pytest.raises(ConfigError, match="agentkv calibrate"):
        Service.open(model, ServiceConfig(kv_memory=1 << 22, target_kl=0.1))
    curve = Curve(left=(1.0,), kl=(0.25,), quantile=0.9, prompts=12)
    Calibration(model=fingerprint(model), curves={"query_attention": curve}).save(path)
    config = ServiceConfig(kv_memory=1 << 22, target_kl=0.1, calibration=path, selector="query_attention(0.2)")
    with Service.open(model, config) as service:
        chat = ChatRequest(messages=(ChatMessage(role="user", content="hello"),), selector="tail_rows(4)")
        with pytest.raises(InvalidRequest, match="query_attention"):
            service.submit(chat)


def test_what_was_calibrated_with_other_traces_is_refused(small_model, tmp_path):
    model, path = small_model("qwen2"), tmp_path / "calibration.json"
    curve = Curve(left=(100.0,), kl=(0.25,), quantile=0.9, prompts=12)
    Calibration(model=fingerprint(model), curves={"reading_change": curve}, trace_layers=2).save(path)
    with pytest.raises(ConfigError, match="trace_layers 2, not 1"):
        Service.open(model, ServiceConfig(kv_memory=1 << 24, calibration=path, trace_layers=1))


def test_a_rule_that_asks_traces_needs_some(small_model):
    model = small_model("qwen2")
    with pytest.raises(ConfigError, match="set trace_layers to 1 or more"):
        Service.open(model, ServiceConfig(kv_memory=1 << 24, trace_layers=0))
