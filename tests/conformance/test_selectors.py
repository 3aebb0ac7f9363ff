"""What every selector owes the engine, whatever its rule: plans inside the spans, within the budget, in order."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkv.screening.selectors.budget import BudgetedSelector, plan_without_choice
from agentkv.screening.selectors.registry import SELECTORS, parse_selector
from agentkv_engine.reuse import Amendment, Draft, PlacedSpan, Probe, RepairPlan, ReuseView
from drawn_attention import DrawnAttention

NAMES = [
    *SELECTORS,
    "repair_boundary(0)",
    "repair_boundary(1)",
    "query_attention(0.0)",
    "query_attention(0.5)",
    "query_attention(1.0)",
    "random_rows(0.37, 5)",
    "propagated_attention(0.0)",
    "value_deviation(0.5, 2)",
    "reading_change(0.0)",
    "reading_change(0.6)",
    "draft_reading(0.0)",
    "draft_reading(0.5, 3)",
    "propagated_attention(0.4, 0.1, 2)",
    "propagated_attention(1.0)",
]


@st.composite
def placed_spans(draw: st.DrawFn, start: int, num_layers: int) -> PlacedSpan:
    """A span that starts at `start`; its author saw all, some or nothing of what stands before it."""
    cut = draw(st.integers(0, start))
    return PlacedSpan(
        start=start,
        end=start + draw(st.integers(1, 40)),
        handle=draw(st.one_of(st.none(), st.integers(1, 9))),
        resident_start=draw(st.integers(0, 5)),
        unseen=draw(st.sampled_from([(), ((cut, start),)])) if cut < start else (),
        num_gone=draw(st.sampled_from([0, 0, 7])),
        hops=draw(st.integers(0, 3)),
        depth_spent=draw(st.sampled_from([0, 0, 1, num_layers])),
    )


@st.composite
def views(draw: st.DrawFn) -> ReuseView:
    """A prompt: an exact prefix, then spans and fresh text in any order; empty spans and 100% reuse included."""
    num_layers = draw(st.integers(1, 4))
    num_prefix = draw(st.sampled_from([0, 16, 48]))
    spans: list[PlacedSpan] = []
    position = num_prefix
    for is_span in draw(st.lists(st.booleans(), max_size=6)):
        if is_span:
            spans.append(draw(placed_spans(position, num_layers)))
            position = spans[-1].end
        else:
            position += draw(st.integers(1, 30))
    num_tokens = max(position, num_prefix + 1)
    return ReuseView(num_tokens=num_tokens, num_layers=num_layers, num_prefix=num_prefix, spans=tuple(spans))


def plan(selector: BudgetedSelector, view: ReuseView, *, stored: bool = True) -> RepairPlan:
    probe = selector.probe(view)
    if probe is None:
        answer = selector.plan(view, None)
        assert isinstance(answer, RepairPlan)
        return watched(answer, view, stored=stored)
    probes = [probe]
    while True:
        answer = selector.plan(view, DrawnAttention.at_random(view, *probes, stored=stored))
        if isinstance(answer, RepairPlan):
            return watched(answer, view, stored=stored)
        assert not {p for probe in probes for p in probe.positions} & set(answer.positions)
        probes.append(answer)
        assert len(probes) < 20, "the rule never makes up its mind"


def watched(plan: RepairPlan, view: ReuseView, *, stored: bool) -> RepairPlan:
    """What a plan and its watch repair, the watch being asked before one token."""
    if plan.watch is None:
        return plan
    watch, speaking = plan.watch(view, plan.positions), range(view.num_tokens - 1, view.num_tokens)
    answer: object = None
    for _ in range(2):
        known = replace(view, num_tokens=speaking.stop)
        rows = Probe(positions=tuple(speaking), depth=view.num_layers)
        observation = DrawnAttention.at_random(known, rows, stored=stored)
        watch.see(observation)
        answer = watch.ask(observation, speaking)
        if not isinstance(answer, Draft):
            break
        speaking = range(speaking.start, speaking.stop + answer.num_tokens)
    assert isinstance(answer, Amendment), "it never makes up its mind"
    assert list(answer.repairs) == sorted(set(answer.repairs))
    assert not set(answer.repairs) & set(plan.positions)
    return plan.with_repairs(answer.repairs, view.num_layers, left=answer.left)


def changed_rows(view: ReuseView) -> Iterator[int]:
    for span in view.spans:
        if span.context_changed:
            yield from range(span.start, span.end)


@pytest.fixture(params=NAMES, scope="module")
def selector(request: pytest.FixtureRequest) -> BudgetedSelector:
    return parse_selector(request.param)


@given(view=views())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plan_is_sorted_inside_the_spans_and_of_legal_depth(selector: BudgetedSelector, view: ReuseView) -> None:
    chosen = plan(selector, view)
    reused = {p for span in view.spans for p in range(span.start, span.end)}
    assert list(chosen.positions) == sorted(set(chosen.positions))
    assert reused.issuperset(chosen.positions)
    assert all(1 <= depth <= view.num_layers for depth in chosen.depths)


@given(view=views())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plan_keeps_to_the_budget(selector: BudgetedSelector, view: ReuseView) -> None:
    assert sum(plan(selector, view).depths) <= selector.budget(view) <= view.num_reused * view.num_layers


@given(view=views())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_without_traces_rows_are_looked_at_once_and_in_time(selector: BudgetedSelector, view: ReuseView) -> None:
    """But for rules that live on traces: they say so."""
    lives_on_traces = selector.name.startswith(("reading_change", "draft_reading"))
    if lives_on_traces and plan_without_choice(view, selector.ratio) is None:
        with pytest.raises(ValueError, match="trace_layers"):
            plan(selector, view, stored=False)
        return
    chosen = plan(selector, view, stored=False)
    assert chosen == plan(selector, view, stored=True)


@given(view=views())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_probe_names_rows_that_will_run(selector: BudgetedSelector, view: ReuseView) -> None:
    probe = selector.probe(view)
    if probe is not None:
        assert list(probe.positions) == sorted(set(probe.positions))
        assert all(view.num_prefix <= position < view.num_tokens for position in probe.positions)
        assert 1 <= probe.depth <= view.num_layers


@given(view=views())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_same_question_same_answer(selector: BudgetedSelector, view: ReuseView) -> None:
    again = parse_selector(selector.name)
    assert selector.probe(view) == again.probe(view)
    assert plan(selector, view) == plan(again, view)


@given(view=views())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_spans_in_the_context_of_their_author_are_left_alone(selector: BudgetedSelector, view: ReuseView) -> None:
    chosen = plan(selector, view)
    if selector.name == "repair_all":
        assert sum(chosen.depths) == view.num_reused * view.num_layers
    else:
        assert set(changed_rows(view)).issuperset(chosen.positions)


def test_no_spans_no_plan(selector: BudgetedSelector) -> None:
    view = ReuseView(num_tokens=40, num_layers=3, num_prefix=16, spans=())
    assert selector.probe(view) is None
    assert selector.plan(view, None) == RepairPlan()
    assert selector.budget(view) == 0


def test_one_token_spans(selector: BudgetedSelector) -> None:
    spans = tuple(PlacedSpan(start=p, end=p + 1, handle=p, unseen=((0, p),)) for p in range(10, 60, 2))
    view = ReuseView(num_tokens=64, num_layers=2, num_prefix=0, spans=spans)
    assert {span.start for span in spans}.issuperset(plan(selector, view).positions)


def test_whole_prompt_reused(selector: BudgetedSelector) -> None:
    span = PlacedSpan(start=0, end=200, handle=1, num_gone=12)
    view = ReuseView(num_tokens=200, num_layers=2, num_prefix=0, spans=(span,))
    chosen = plan(selector, view)
    # How many rows stand out, only the look says.
    spends_all = not selector.name.startswith("relay")
    assert sum(chosen.depths) == selector.budget(view) if spends_all else 0 < sum(chosen.depths) < selector.budget(view)
    assert set(chosen.depths) <= {2}
