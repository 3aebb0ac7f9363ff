"""The worth check: short or dear reuse is not worth it."""

from dataclasses import replace

import pytest

from agentkv.screening.selectors.query_attention import QueryAttention
from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv.screening.selectors.repair_all import RepairAll
from agentkv.screening.selectors.repair_none import RepairNone
from agentkv.screening.worth import NOT_WORTH, WorthCheck
from agentkv_engine.reuse import PlacedSpan, ReuseView


def prompt(reused: int, fresh: int, *, num_prefix: int = 0, num_gone: int = 1) -> ReuseView:
    span = PlacedSpan(start=num_prefix, end=num_prefix + reused, handle=1, num_gone=num_gone)
    spans = (span,) if reused else ()
    return ReuseView(num_tokens=num_prefix + reused + fresh, num_layers=4, num_prefix=num_prefix, spans=spans)


def test_long_reuse_is_worth_it() -> None:
    assert WorthCheck().reason_against(prompt(1000, 100), QueryAttention(ratio=0.2)) is None


def test_nothing_or_little_to_reuse_is_not() -> None:
    assert WorthCheck().reason_against(prompt(0, 100), RepairNone()) == NOT_WORTH
    assert WorthCheck(min_reused=32).reason_against(prompt(31, 1), RepairNone()) == NOT_WORTH
    assert WorthCheck(min_reused=32).reason_against(prompt(32, 1), RepairNone()) is None


def test_repairing_everything_is_not() -> None:
    assert WorthCheck().reason_against(prompt(1000, 100), RepairAll()) == NOT_WORTH


def test_cost_counts_fresh_repaired_probe_and_its_pass() -> None:
    view = prompt(200, 50, num_prefix=16)
    assert WorthCheck(pass_rows=10).cost(view, QueryAttention(ratio=0.1)) == 4 * (50 + 20 + 16 + 10)
    assert WorthCheck(pass_rows=10).cost(view, RepairNone()) == 4 * 50


def test_a_mere_look_takes_a_pass_only_where_something_must_run_before_it() -> None:
    rule, check = ReadingChange(ratio=0.1), WorthCheck(pass_rows=10)
    view = prompt(200, 50, num_prefix=16)
    assert check.cost(view, rule) == 4 * (50 + 20)
    later = replace(view, spans=(replace(view.spans[0], start=26),))
    assert check.cost(later, rule) == 4 * (60 + 19 + 10)


def test_probe_breaks_even_with_length() -> None:
    rule, check = QueryAttention(ratio=0.2), WorthCheck(max_cost=0.8, pass_rows=16)
    reasons = [check.reason_against(prompt(reused, 16), rule) for reused in range(0, 200)]
    assert reasons[50] == NOT_WORTH
    assert reasons[199] is None
    first = reasons.index(None)
    assert all(reason is None for reason in reasons[first:])


def test_segments_in_their_own_context_need_no_probe() -> None:
    rule = QueryAttention(ratio=0.2)
    assert WorthCheck().reason_against(prompt(40, 8, num_gone=1), rule) == NOT_WORTH
    assert WorthCheck().reason_against(prompt(40, 8, num_gone=0), rule) is None


@pytest.mark.parametrize("wrong", [{"max_cost": 1.5}, {"min_reused": -1}, {"pass_rows": -1}])
def test_refuses_senseless_settings(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WorthCheck(**wrong)
