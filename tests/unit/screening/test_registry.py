"""Selectors by name."""

import pytest

from agentkv.errors import InvalidRequest
from agentkv.screening.selectors.query_attention import QueryAttention
from agentkv.screening.selectors.random_rows import RandomRows
from agentkv.screening.selectors.registry import SELECTORS, known_selectors, parse_selector
from agentkv.screening.selectors.repair_boundary import RepairBoundary
from agentkv.screening.selectors.repair_none import RepairNone
from agentkv_engine.reuse import Selector


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("repair_none", RepairNone()),
        ("repair_none()", RepairNone()),
        ("repair_boundary(8)", RepairBoundary(k=8)),
        ("repair_boundary( k = 8 )", RepairBoundary(k=8)),
        ("query_attention", QueryAttention(ratio=0.2)),
        (" query_attention (0.05) ", QueryAttention(ratio=0.05)),
        ("query_attention(5e-2)", QueryAttention(ratio=0.05)),
        ("query_attention(1)", QueryAttention(ratio=1.0)),
        ("random_rows(0.3, 7)", RandomRows(ratio=0.3, seed=7)),
        ("random_rows(seed=7, ratio=0.3)", RandomRows(ratio=0.3, seed=7)),
    ],
)
def test_parses(text: str, selector: Selector) -> None:
    assert parse_selector(text) == selector


@pytest.mark.parametrize("selector", [RepairBoundary(k=0), QueryAttention(ratio=1 / 3), RandomRows(ratio=1, seed=-4)])
def test_names_round_trip(selector: Selector) -> None:
    assert parse_selector(selector.name) == selector
    assert parse_selector(selector.name).name == selector.name


def test_every_rule_has_defaults_and_its_own_name() -> None:
    for name in SELECTORS:
        assert parse_selector(name).name.split("(")[0] == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no such rule"),
        ("cacheblend(0.1)", "no such rule"),
        ("query_attention(0.2", "no such rule"),
        ("__import__('os').getcwd()", "no such rule"),
        ("query_attention(2)", "from 0 to 1"),
        ("query_attention(nan)", "'nan' is not a number"),
        ("query_attention(1e999)", "from 0 to 1"),
        ("query_attention(0.1, 0.2)", "takes 1 arguments, not 2"),
        ("query_attention(share=0.2)", "no argument 'share'"),
        ("random_rows(0.2, ratio=0.3)", "'ratio' is given twice"),
        ("repair_none(1)", "takes 0 arguments"),
        ("repair_boundary(0.5)", "0.5"),
        ("repair_boundary(-1)", "0 or more"),
        ("repair_boundary(8,)", "'' is not a number"),
        ("repair_boundary(" + "9" * 5000 + ")", "can't be used"),
    ],
)
def test_refuses_and_lists_what_there_is(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_selector(text)
    assert caught.value.param == "selector"
    assert reason in str(caught.value)
    assert all(known in str(caught.value) for known in known_selectors())
    assert "query_attention(ratio=0.2)" in str(caught.value)
