"""Curves from what is left to KL, and the rule that deepens until they say enough."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from agentkv.errors import ConfigError
from agentkv.screening.calibration import Calibration, Curve, fingerprint, fit_curve
from agentkv.screening.selectors.budget import plan_of_best, plan_without_choice
from agentkv.screening.selectors.query_attention import QueryAttention
from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv.screening.selectors.repair_all import RepairAll
from agentkv.screening.selectors.tail_rows import TailRows
from agentkv.screening.selectors.until import Until
from agentkv_engine.reuse import PlacedSpan, Probe, RepairPlan, ReuseView
from drawn_attention import DrawnAttention

SPAN = PlacedSpan(start=10, end=110, handle=1, unseen=((0, 10),))
VIEW = ReuseView(num_tokens=130, num_layers=2, num_prefix=0, spans=(SPAN,))
CURVE = Curve(left=(0.01, 0.4, 2.0), kl=(0.001, 0.02, 0.3), quantile=0.9, prompts=100)


def test_a_curve_never_falls_and_covers_its_quantile():
    draws = np.random.default_rng(0)
    left = draws.uniform(0, 1, 2000)
    kl = np.exp(6 * left - 6 + draws.normal(0, 1, 2000))
    curve = fit_curve(left, kl, quantile=0.9)
    assert list(curve.kl) == sorted(curve.kl)
    covered = np.mean([k <= curve.estimate(x) for x, k in zip(left, kl, strict=True)])
    assert covered == pytest.approx(0.9, abs=0.02)
    # The 90% quantile of a normal is 1.28: the curve finds it, within what pools of a few dozen can tell.
    for x in (0.2, 0.5, 0.8):
        assert np.log(curve.estimate(x)) == pytest.approx(6 * x - 6 + 1.28, abs=0.5)


def test_violators_are_pooled():
    kl = [1.0] * 12 + [0.1] * 12 + [2.0] * 12
    curve = fit_curve(range(36), kl, quantile=0.5)
    assert (curve.left, curve.kl) == ((23.0, 35.0), (1.0, 2.0))
    same = fit_curve([1.0] * 30, range(30), quantile=0.9)
    assert (same.left, same.kl) == ((1.0,), (27.0,))


def test_too_few_prompts_are_no_curve():
    with pytest.raises(ValueError, match="12 or more"):
        fit_curve([1.0] * 5, [1.0] * 5)


def test_what_is_not_known_is_not_said():
    assert CURVE.estimate(0) == 0
    assert CURVE.estimate(0.005) == 0.001
    assert CURVE.estimate(0.4) == 0.02
    assert CURVE.estimate(0.41) == 0.3
    assert CURVE.estimate(2.1) is None
    assert CURVE.estimate(float("nan")) is None
    calibration = Calibration(model="m", curves={"query_attention": CURVE})
    assert calibration.estimate("query_attention(0.2)", 0.1) == 0.02
    assert calibration.estimate("query_attention(0.2)", None) is None
    assert calibration.estimate("tail_rows(16)", 0.1) is None


def test_a_calibration_belongs_to_its_model(small_model, tmp_path):
    model, path = small_model("qwen2"), tmp_path / "calibration.json"
    written = Calibration(model=fingerprint(model), curves={"query_attention": CURVE}, measured={"date": "today"})
    written.save(path)
    assert Calibration.load(path, model) == written
    with pytest.raises(ConfigError, match="not of the model"):
        Calibration.load(path, small_model("llama"))
    for content in ("{}", "[]", "no", path.read_text().replace('"format": 2', '"format": 9')):
        path.write_text(content)
        with pytest.raises(ConfigError, match="agentkv calibrate"):
            Calibration.load(path, model)
    with pytest.raises(ConfigError, match="agentkv calibrate"):
        Calibration.load(tmp_path / "none.json", model)


def test_a_plan_says_what_it_leaves():
    probe = QueryAttention(ratio=0.1).probe(VIEW)
    seen = DrawnAttention.at_random(VIEW, probe)
    left = [QueryAttention(ratio=ratio).plan(VIEW, seen).left for ratio in (0.1, 0.3, 0.9)]
    assert left[0] > left[1] > left[2] > 0
    mean_P = seen.attention_LPP[:, list(probe.positions)].mean((0, 1))
    chosen = QueryAttention(ratio=0.1).plan(VIEW, seen).positions
    assert left[0] == pytest.approx(float(mean_P[10:110].sum() - mean_P[list(chosen)].sum()), abs=1e-6)
    assert plan_without_choice(VIEW, 1.0).left == 0
    assert plan_without_choice(VIEW, 0.0).left is None
    assert RepairAll().plan(VIEW, None).left == 0


def test_rows_that_inherit_an_error_leave_nobody_knows_what():
    hit = PlacedSpan(start=0, end=10, handle=None, hops=1)
    view = replace(VIEW, spans=(hit, SPAN))
    scores = DrawnAttention.at_random(view).attention_LPP[0, -1, 10:110]
    assert plan_of_best(view, scores, range(10, 110), 5).left is None
    assert plan_of_best(replace(view, spans=(replace(hit, hops=0), SPAN)), scores, range(10, 110), 5).left is not None


@dataclass
class Counted(DrawnAttention):
    looks: list = field(default_factory=list)
    readings: list = field(default_factory=list)

    def attention(self, layer, positions):
        self.looks.append((layer, tuple(positions)))
        return super().attention(layer, positions)

    def reading(self, layer, rereads, chosen=None):
        self.readings.append((layer, tuple(rereads)))
        return super().reading(layer, rereads, chosen)


def until(target: float, curve: Curve = CURVE, ratio: float = 0.1) -> Until:
    return Until(
        inner=QueryAttention(ratio=ratio),
        target=target,
        calibration=Calibration(model="m", curves={"query_attention": curve}),
    )


def plan(rule: Until, view: ReuseView = VIEW) -> RepairPlan:
    probe = rule.probe(view)
    return rule.plan(view, None if probe is None else Counted.at_random(view, probe))


def test_a_plan_deepens_until_the_estimate_will_do():
    fewest = plan(until(target=1))
    enough = plan(until(target=0.02))
    assert len(fewest.positions) == 10
    assert fewest.left > 0.4
    assert 10 < len(enough.positions) < 100
    assert enough.left <= 0.4
    assert (
        enough.positions
        == QueryAttention(ratio=len(enough.positions) / 100)
        .plan(VIEW, DrawnAttention.at_random(VIEW, until(1).probe(VIEW)))
        .positions
    )


def test_where_no_estimate_will_do_everything_is_repaired():
    unknown = Curve(left=(1e-6,), kl=(0.001,), quantile=0.9, prompts=12)
    for rule in (until(target=1e-4), until(target=1, curve=unknown)):
        assert plan(rule) == RepairAll().plan(VIEW, None)


def test_where_that_is_sure_nothing_is_looked_at():
    """The least estimate is too high, or rows that no rule may choose have an error that nobody knows."""
    inherited = replace(VIEW, spans=(PlacedSpan(start=0, end=10, handle=2, hops=1), SPAN))
    for rule, view in ((until(target=1e-4), VIEW), (until(target=1), inherited)):
        assert rule.probe(view) is None
        assert rule.plan(view, None) == RepairAll().plan(view, None)
        assert rule.budget(view) == RepairAll().budget(view)
    own_context = replace(VIEW, spans=(replace(SPAN, unseen=()),))
    assert until(target=1e-4).plan(own_context, None) == RepairPlan(left=0.0)


def test_each_look_is_paid_once():
    rule = until(target=2e-3)
    seen = Counted.at_random(VIEW, rule.probe(VIEW))
    rule.plan(VIEW, seen)
    assert len(seen.looks) == len(set(seen.looks)) == VIEW.num_layers


def test_a_look_at_traces_is_paid_once_too():
    calibration = Calibration(model="m", curves={"reading_change": CURVE})
    rule = Until(inner=ReadingChange(ratio=0.1), target=0.02, calibration=calibration)
    seen = Counted.at_random(VIEW, rule.probe(VIEW))
    assert rule.plan(VIEW, seen).left <= 0.4
    assert [layer for layer, _ in seen.readings] == [0, 1]


def test_a_ratio_that_buys_nothing_is_raised_first():
    assert isinstance(until(target=1, ratio=0.0).probe(VIEW), Probe)
    assert len(plan(until(target=1, ratio=0.0)).positions) > 0
    one = replace(VIEW, spans=(replace(SPAN, end=11),))
    assert until(target=1).probe(one) is None
    assert plan(until(target=1), one) == RepairAll().plan(one, None)


def test_spans_in_their_own_context_cost_nothing():
    seen = replace(VIEW, spans=(replace(SPAN, unseen=()),))
    assert plan(until(target=1e-4), seen) == RepairPlan(left=0.0)


def test_rules_without_estimates_are_refused():
    with pytest.raises(ConfigError, match="query_attention"):
        Until(inner=TailRows(), target=1, calibration=until(1).calibration)
    with pytest.raises(ConfigError, match="none"):
        Until(inner=QueryAttention(), target=1, calibration=Calibration(model="m", curves={}))
