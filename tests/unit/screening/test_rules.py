"""What each rule picks."""

from dataclasses import replace

import pytest

from agentkv.screening.selectors.budget import affordable_rows
from agentkv.screening.selectors.propagated_attention import PropagatedAttention
from agentkv.screening.selectors.query_attention import QueryAttention
from agentkv.screening.selectors.random_rows import RandomRows
from agentkv.screening.selectors.reading_change import ReadingChange, changes, unread_messages
from agentkv.screening.selectors.relay import Relay
from agentkv.screening.selectors.repair_all import RepairAll
from agentkv.screening.selectors.repair_boundary import RepairBoundary
from agentkv.screening.selectors.value_deviation import ValueDeviation
from agentkv_engine.reuse import PlacedSpan, Probe, RepairPlan, Reread, ReuseView
from drawn_attention import DrawnAttention

SEEN = PlacedSpan(start=20, end=40, handle=1)
CHANGED = PlacedSpan(start=50, end=90, handle=2, unseen=((0, 50),), unread=((20, 40),))
LOST = PlacedSpan(start=90, end=100, handle=3, num_gone=5)


def view(*spans: PlacedSpan, num_tokens: int = 120, num_prefix: int = 0) -> ReuseView:
    return ReuseView(num_tokens=num_tokens, num_layers=3, num_prefix=num_prefix, spans=spans)


def attention(view: ReuseView, positions: tuple[int, ...], shares: dict[int, float]) -> DrawnAttention:
    """Attention that every probe row of every layer gives to the positions named."""
    seen = DrawnAttention.nothing(view, Probe(positions=positions, depth=view.num_layers))
    for position, share in shares.items():
        seen.attention_LPP[:, list(positions), position] = share
    return seen


def planned(rule: PropagatedAttention, view: ReuseView, seen: DrawnAttention) -> RepairPlan:
    """The plan, once all probes that the rule asks for have run."""
    while isinstance(answer := rule.plan(view, seen), Probe):
        seen = replace(seen, probes=(*seen.probes, answer))
    return answer


def test_boundary_takes_the_first_rows_of_changed_spans() -> None:
    assert RepairBoundary(k=3).plan(view(SEEN, CHANGED, LOST), None).positions == (50, 51, 52, 90, 91, 92)
    assert RepairBoundary(k=16).plan(view(LOST), None).positions == tuple(range(90, 100))


def test_all_takes_the_seen_as_well() -> None:
    assert RepairAll().plan(view(SEEN, LOST), None).positions == (*range(20, 40), *range(90, 100))


def test_query_attention_takes_the_most_attended_of_the_changed() -> None:
    prompt = view(SEEN, CHANGED, LOST)
    rule = QueryAttention(ratio=0.06)  # of 50 changed rows: 3
    probe = rule.probe(prompt)
    assert probe is not None
    assert probe.positions == tuple(range(104, 120))
    seen = attention(prompt, probe.positions, {5: 0.3, 30: 0.2, 61: 0.15, 99: 0.1, 55: 0.08, 70: 0.05, 110: 0.12})
    assert rule.plan(prompt, seen) == RepairPlan(positions=(55, 61, 99), depths=(3, 3, 3))


def test_query_attention_averages_layers_and_rows() -> None:
    prompt = view(CHANGED)
    seen = attention(prompt, tuple(range(104, 120)), {})
    seen.attention_LPP[0, 104, 60] = 0.9  # one row in one layer
    seen.attention_LPP[:, 104:, 70] = 0.1  # all of them, a little
    assert QueryAttention(ratio=0.025).plan(prompt, seen).positions == (70,)


def test_query_attention_breaks_ties_by_position() -> None:
    prompt = view(CHANGED)
    level = attention(prompt, tuple(range(104, 120)), dict.fromkeys(range(50, 90), 0.02))
    assert QueryAttention(ratio=0.1).plan(prompt, level).positions == (50, 51, 52, 53)


@pytest.mark.parametrize(("num_tokens", "rows"), [(110, 16), (5_000, 50), (100_000, 128)])
def test_probe_is_a_percent_within_bounds(num_tokens: int, rows: int) -> None:
    probe = QueryAttention().probe(view(CHANGED, num_tokens=num_tokens))
    assert probe is not None
    assert probe.positions == tuple(range(num_tokens - rows, num_tokens))
    assert probe.depth == 3


def test_probe_stays_behind_the_exact_prefix() -> None:
    span = PlacedSpan(start=48, end=53, handle=1, num_gone=1)
    probe = QueryAttention().probe(view(span, num_tokens=55, num_prefix=48))
    assert probe is not None
    assert probe.positions == tuple(range(48, 55))


@pytest.mark.parametrize("ratio", [0, 1])
def test_no_probe_where_there_is_no_choice(ratio: float) -> None:
    rule = QueryAttention(ratio=ratio)
    assert rule.probe(view(CHANGED)) is None
    assert len(rule.plan(view(CHANGED), None).positions) == 40 * ratio


def test_rows_with_all_depth_spent_are_not_repaired_again() -> None:
    done = PlacedSpan(start=50, end=90, handle=None, unseen=((0, 50),), depth_spent=3)
    assert QueryAttention().probe(view(done)) is None
    assert RepairBoundary().plan(view(done), None) == RepairPlan()
    half = PlacedSpan(start=50, end=90, handle=None, unseen=((0, 50),), depth_spent=2)
    assert len(RepairBoundary().plan(view(half), None).positions) == 16


def test_random_rows_follow_their_seed() -> None:
    prompt = view(SEEN, CHANGED)
    first, second = (RandomRows(ratio=0.3, seed=seed).plan(prompt, None) for seed in (1, 2))
    assert len(first.positions) == len(second.positions) == 12
    assert first != second
    assert first == RandomRows(ratio=0.3, seed=1).plan(prompt, None)


@pytest.mark.parametrize("ratio", [0.29, 0.1, 0.7])
def test_ratio_is_not_cut_by_rounding(ratio: float) -> None:
    span = PlacedSpan(start=0, end=100, handle=1, num_gone=1)
    assert len(RandomRows(ratio=ratio).plan(view(span), None).positions) == round(ratio * 100)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_ratio_must_be_a_share(ratio: float) -> None:
    for rule in (QueryAttention, RandomRows):
        with pytest.raises(ValueError, match="from 0 to 1"):
            rule(ratio=ratio)


def test_boundary_must_be_a_count() -> None:
    with pytest.raises(ValueError, match="k -1"):
        RepairBoundary(k=-1)


def test_propagated_attention_finds_rows_that_only_stale_rows_read() -> None:
    """The last row reads 60, 60 reads 75, 75 reads 52: nobody else does. Question attention can't know the last two."""
    prompt = view(CHANGED)
    probe = Probe(positions=tuple(range(104, 120)), depth=3)
    seen = DrawnAttention.nothing(prompt, probe)
    seen.attention_LPP[2, 119, 60] = 0.5
    seen.attention_LPP[1, 60, 75] = 0.5
    seen.attention_LPP[0, 75, 52] = 0.5
    seen.attention_LPP[:, 110, 80] = 0.4  # read in every layer, by a row that nobody reads
    chosen = planned(PropagatedAttention(ratio=0.075, growth=0.05, rounds=3), prompt, seen)
    assert chosen == RepairPlan(positions=(52, 60, 75), depths=(3, 3, 3))
    by_question = QueryAttention(ratio=0.05).plan(prompt, seen)
    assert by_question.positions == (60, 80)


def test_importance_flows_down_only() -> None:
    """60 reads 75 in layer 1 and is itself read in layer 1 only: what it holds there was read below."""
    prompt = view(CHANGED)
    seen = DrawnAttention.nothing(prompt, Probe(positions=tuple(range(104, 120)), depth=3))
    seen.attention_LPP[1, 119, 60] = 0.5
    seen.attention_LPP[1, 60, 75] = 0.5
    seen.attention_LPP[0, 60, 80] = 0.5
    chosen = planned(PropagatedAttention(ratio=0.05, growth=0.05, rounds=3), prompt, seen)
    assert chosen.positions == (60, 80)


def test_value_deviation_takes_the_rows_that_change_most() -> None:
    prompt = view(CHANGED)
    rule = ValueDeviation(ratio=0.05)
    probe = rule.probe(prompt)
    assert probe == Probe(positions=tuple(range(120)), depth=1)
    seen = DrawnAttention.nothing(prompt, probe)
    seen.attention_LPP[1, 77, 77], seen.attention_LPP[1, 88, 88], seen.attention_LPP[2, 66, 66] = 2.0, 3.0, 9.0
    assert rule.plan(prompt, seen).positions == (77, 88)


def test_relay_takes_rows_that_turn_rows_that_are_read_and_the_last_ones() -> None:
    prompt = view(SEEN, CHANGED, LOST)
    rule = Relay(last=2)
    assert rule.probe(prompt) == Probe(positions=tuple(range(120)), depth=1)
    seen = DrawnAttention.nothing(prompt, Probe(positions=tuple(range(120)), depth=1))
    for row, turn in ((55, 0.3), (60, 0.002), (20, 0.9)):  # 20 stands in the context of its author
        seen.attention_LPP[1, row, row] = turn
    seen.attention_LPP[0, 100:, 70] = 0.2
    seen.attention_LPP[0, 100:, 71] = 0.002
    assert rule.plan(prompt, seen).positions == (55, 70, 88, 89, 98, 99)


def test_relay_counts_attention_by_the_rows_that_see_a_key() -> None:
    """A late key that all its few readers read counts as much as an early one that all its many readers do."""
    prompt = view(CHANGED)
    seen = DrawnAttention.nothing(prompt, Probe(positions=tuple(range(120)), depth=1))
    seen.attention_LPP[0, 51:, 51] = 0.1
    seen.attention_LPP[0, 89:, 89] = 0.1
    assert set(Relay(last=0).plan(prompt, seen).positions) == {51, 89}


@pytest.mark.parametrize("wrong", [{"deviation": 0}, {"attention": -1}, {"last": -1}, {"layer": 0}])
def test_relay_has_multiples_above_zero(wrong) -> None:
    with pytest.raises(ValueError, match="above"):
        Relay(**wrong)


def test_reading_change_takes_what_reads_anew_and_the_rows_right_behind_it() -> None:
    prompt = view(SEEN, CHANGED, LOST)
    rule = ReadingChange(ratio=0.08)  # of 50 changed rows: 4
    assert rule.probe(prompt) == Probe(positions=(), depth=1)
    seen = DrawnAttention.nothing(prompt, Probe(positions=(), depth=3))
    for row, key, share in ((60, 25, 0.5), (30, 5, 0.9), (89, 3, 0.7), (80, 10, 0.1)):
        seen.attention_LPP[:, row, key] = share  # 30's author had seen all of this
    assert rule.plan(prompt, seen).positions == (60, 61, 62, 89)  # 90 belongs to another message


def test_behind_the_first_traced_layer_only_rows_that_change_most_are_looked_at() -> None:
    prompt = view(SEEN, CHANGED, LOST)
    seen = DrawnAttention.nothing(prompt, Probe(positions=(), depth=3))
    seen.attention_LPP[0, 60:85, 25] = 0.5
    seen.attention_LPP[1, 61, 25], seen.attention_LPP[2, 62, 25] = 0.2, 0.1
    seen.attention_LPP[1:, 55, 25] = 9.0
    change_R = changes(seen, unread_messages(prompt))
    assert change_R[5] == 0
    expected = (2 * 0.5, 2 * (0.5 + 0.2), 2 * (0.5 + 0.1), 2 * 0.5)  # 25 is read, and is left out
    assert change_R[10:14].tolist() == pytest.approx(expected)


def test_unread_messages_are_those_that_the_author_had_not_seen() -> None:
    """Whether they are read from where they are kept, or the prefix cache covers them."""
    assert unread_messages(view(SEEN, CHANGED, LOST)) == [
        Reread(positions=range(50, 90), left_out=((20, 40),)),
        Reread(positions=range(90, 100)),
    ]
    assert unread_messages(view(CHANGED, num_prefix=48)) == [Reread(positions=range(50, 90), left_out=((20, 40),))]


def test_what_stands_in_its_authors_context_buys_no_repairs() -> None:
    assert affordable_rows(view(SEEN, CHANGED), 0.1) == affordable_rows(view(CHANGED, num_prefix=48), 0.1) == 4


def test_a_screened_prefix_buys_no_repairs() -> None:
    """A long thread that was read before does not make the rule repair all of one new message."""
    before = PlacedSpan(start=0, end=1000, handle=None, depth_spent=1)
    new = PlacedSpan(start=1000, end=1100, handle=5, unseen=((0, 1000),))
    prompt = view(before, new, num_tokens=1120)
    assert affordable_rows(prompt, 0.3) == 30
    assert RandomRows(ratio=0.3).budget(prompt) == 30 * 3
