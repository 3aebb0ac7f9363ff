"""The accuracy suite's parts that need no model: items as engines see them, intervals, rows on disk, the page."""

import re
from dataclasses import replace

import pytest

from agentkv.embedded import model_directory
from agentkv.errors import AgentKVError, ConfigError, InvalidRequest
from agentkv.screening.selectors.tail_rows import TailRows
from agentkv_engine.reuse import PlacedSpan, ReuseView
from agentkv_evals.accuracy.arms import PEERS, RATIOS, make_arms, parse_ratios
from agentkv_evals.accuracy.bootstrap import paired
from agentkv_evals.accuracy.cases import Cell
from agentkv_evals.accuracy.options import chosen
from agentkv_evals.accuracy.provenance import is_same_run, provenance
from agentkv_evals.accuracy.report import html
from agentkv_evals.accuracy.rows import Row, RowFile
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.summary import summarise
from agentkv_evals.accuracy.tasks.sources import TaskName, TaskOptions
from agentkv_evals.accuracy.tasks.task import Task

RUN = {"code": "abc", "commit": "one", "batch": 16}


def row(arm: str = "full", seed: int = 0, **changes: object) -> Row:
    base = Row(
        item=f"{changes.get('family', 'chain')}/{seed}",
        family="chain",
        depth=1,
        topology="parallel",
        question="last",
        seed=seed,
        step=1,
        steps=1,
        hop=1,
        arm=arm,
        right=True,
        exact=True,
        positions=10,
        mismatched=0,
        ties=0,
        kl_sum=0.0,
        same_choice=None,
        prompt=100,
        prefix=0,
        reused=50,
        messages=2,
        layers=4,
        probe=0,
        repair=0,
        screening=0,
        fresh=200,
        left=None,
        seconds=0.1,
        run=RUN,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def worlds() -> Task:
    return TaskOptions(hops=3).source().open(model_directory())


@pytest.mark.parametrize("topology", ["parallel", "chain", "debate"])
@pytest.mark.parametrize("question", ["last", "first"])
def test_messages_stand_where_the_prompt_has_them(worlds, topology, question):
    case = worlds.case(Cell(family="chain", depth=2, topology=topology, question=question), 200_000)
    assert len(case.messages) >= 3
    for message, author in zip(case.messages, case.authors, strict=True):
        assert case.prompt[message.start : message.start + len(message.content)] == message.content
        assert (message.source, message.content) == (author.source, author.content)


def test_what_an_author_saw_is_neither_unseen_nor_gone(worlds):
    def placed(topology):
        case = worlds.case(Cell(family="chain", depth=2, topology=topology), 200_001)
        return case.messages, case.authors

    for message, author in zip(*placed("parallel"), strict=True):
        assert message.unseen == ((0, message.start),)
        assert message.num_gone == len(author.context)
    chain, authors = placed("chain")
    first = chain[0]
    for earlier, message, author in zip(chain, chain[1:], authors[1:], strict=False):
        system = message.unseen[0]
        assert message.unseen == (system, (earlier.start + len(earlier.content) + 2, message.start))
        assert system[1] < first.start  # the header of the first message was seen
        assert message.num_gone < len(author.context) - sum(len(m.content) for m in chain if m.start < message.start)


def test_seen_blocks_are_the_same_tokens_for_author_and_reader(worlds):
    case = worlds.case(Cell(family="chain", depth=2, topology="chain"), 200_001)
    for message, author in zip(case.messages[1:], case.authors[1:], strict=True):
        seen = case.prompt[message.unseen[0][1] : message.unseen[1][0]]
        text = " ".join(map(str, author.context))
        assert " ".join(map(str, seen)) in text


@pytest.mark.parametrize("question", ["last", "first"])
def test_a_reply_passed_on_stands_behind_the_messages(worlds, question):
    cell = Cell(family="chain", depth=1, question=question)
    case = worlds.case(cell, 200_000)
    second, third = (worlds.case(cell, 200_000, (case.right,) * hops) for hops in (1, 2))
    assert third.prompt == second.prompt
    assert (third.hop, len(third.messages), third.authors) == (3, len(case.messages) + 1, case.authors)
    assert third.messages[-1].source == "reply 2"
    reply = second.messages[-1]
    assert second.prompt[reply.start : reply.start + len(reply.content)] == case.right[:-1]
    assert second.prompt[: reply.unseen[0][0]] == case.prompt[: reply.unseen[0][0]]
    behind = second.prompt[reply.start + len(reply.content) + 2 :]
    assert case.prompt[len(case.prompt) - len(behind) :] == behind
    assert reply.num_gone == len(behind)
    assert worlds.case(cell, 200_000, (case.right,) * 3) is None
    assert worlds.case(cell, 200_000, (case.right[-1:],)) is None  # nothing to pass on


def test_intervals_of_known_differences():
    none = paired([0.0] * 50)
    assert (none.mean, none.low, none.high) == (0, 0, 0)
    always = paired([-1.0] * 50)
    assert (always.low, always.high) == (-1, -1)
    mixed = paired([-1.0] * 10 + [0.0] * 90)
    # The mean of 100 draws at 10%: about 0.1 plus or minus 1.96 * 0.03.
    assert mixed.mean == pytest.approx(-0.1)
    assert mixed.low == pytest.approx(-0.16, abs=0.015)
    assert mixed.high == pytest.approx(-0.045, abs=0.015)
    assert paired([-1.0] * 10 + [0.0] * 90) == mixed
    assert paired([-1.0] * 10 + [0.0] * 90, seed=1) != mixed


def test_no_differences_have_no_interval():
    with pytest.raises(ValueError, match="at least one pair"):
        paired([])


def test_an_arm_beside_full_prefill():
    rows = [row(seed=n, right=n < 3, seconds=0.2) for n in range(4)]
    rule = {"probe": 8, "repair": 30, "screening": 2, "kl_sum": 1.0, "mismatched": 1, "exact": False}
    rows += [row("rule", n, right=n < 2, **rule) for n in range(4)]
    full, other = summarise(rows)
    assert (full.work, full.exact, full.loss.mean) == (None, 1, 0)
    assert other.work == pytest.approx(40 / (50 * 4))
    assert (other.probe, other.repair, other.screening, other.fresh) == pytest.approx((0.04, 0.15, 0.01, 0.5))
    assert other.accuracy == 0.5
    assert other.loss.mean == -0.25
    assert other.fidelity.agreement == pytest.approx(0.9)
    assert other.kl_an_item == pytest.approx(0.1)
    assert other.ttft_ratio == pytest.approx(2)
    assert other.same_choice is None


def test_what_nobody_can_grade_has_no_accuracy():
    full, other = summarise([row(right=None), row("rule", right=None, kl_sum=2.0)])
    assert (full.accuracy, full.loss, other.accuracy, other.graded) == (None, None, None, 0)
    assert other.fidelity.mean_kl == pytest.approx(0.2)
    assert "data:image" in html([row(right=None), row("rule", right=None)])


def test_judges_are_asked_for_their_choice():
    judged = [row("rule", n, family="judge", same_choice=n > 0) for n in range(4)]
    rows = [row(seed=n, family="judge", same_choice=True) for n in range(4)] + judged
    assert [each.same_choice for each in summarise(rows)] == [1, 0.75]


def test_rows_survive_and_count_as_done_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    RowFile(path, RUN).append([row(), row("rule")])
    again = RowFile(path, RUN | {"commit": "two"})
    assert again.rows == [row(), row("rule")]
    again.append([row(), row("rule", 1)])
    assert [(r.arm, r.seed) for r in RowFile(path, RUN).rows] == [("full", 0), ("rule", 0), ("rule", 1)]


def test_an_item_counts_as_done_with_its_last_step(tmp_path):
    path = tmp_path / "rows.jsonl"
    RowFile(path, RUN).append([row(steps=2, step=1), row("rule", steps=2, step=1), row(steps=2, step=2)])
    assert RowFile(path, RUN).done == {("chain/0", "full")}


def test_rows_of_other_code_do_not_count(tmp_path):
    path = tmp_path / "rows.jsonl"
    RowFile(path, RUN).append([row()])
    assert RowFile(path, RUN | {"code": "other"}).rows == []


def test_a_line_that_was_cut_off_is_made_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    RowFile(path, RUN).append([row(), row("rule")])
    path.write_text(path.read_text()[:-20])
    results = RowFile(path, RUN)
    assert results.rows == [row()]
    results.append([row("rule")])
    assert RowFile(path, RUN).rows == [row(), row("rule")]


def test_something_else_than_rows_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"family": "chain"}\n')
    with pytest.raises(ConfigError, match="another --out"):
        RowFile(path, RUN)


def test_what_a_run_depends_on(worlds):
    run = provenance(model_directory(), worlds, device="cpu", batch=16)
    assert run["task_version"].startswith("worlds-")
    assert run["processor"]
    assert re.fullmatch("[0-9a-f]{16}", run["model_hash"])
    assert is_same_run(run, run | {"commit": "another"})
    assert not is_same_run(run, run | {"model_hash": "another"})


def test_the_page_needs_nothing_from_elsewhere():
    rows = [row(arm, n, family=family) for arm in ("full", "<rule>(1)") for n in range(2) for family in ("a", "b")]
    page = html(rows)
    assert re.findall(r"(?:src|href)=['\"](?!data:)", page) == []
    assert "://" not in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "&lt;rule&gt;(1)" in page
    assert "<rule>" not in page
    assert "By family" in page
    assert "By depth" not in page


def test_arms_are_named_by_their_rules():
    assert [arm.name for arm in make_arms(["tail_rows(16)", "tail_rows", "repair_none"])] == [
        "tail_rows(16)",
        "repair_none",
    ]
    assert len(make_arms(PEERS, RATIOS)) == len(PEERS)
    with pytest.raises(InvalidRequest, match="no such rule"):
        make_arms(["psychic(1)"])


def test_a_rule_without_arguments_is_swept_over_the_ratios():
    swept = make_arms(["query_attention", "random_rows(0.4)", "tail_rows"], parse_ratios("0.1, 0.3"))
    assert [arm.name for arm in swept] == [
        "query_attention(0.1)",
        "query_attention(0.3)",
        "random_rows(0.4, 0)",
        "tail_rows(16)",
    ]
    for wrong in ("2", "a,b", "0.1,,"):
        with pytest.raises(InvalidRequest, match="shares from 0 to 1"):
            parse_ratios(wrong)


def test_prompts_are_filed_by_the_length_of_their_messages():
    assert row(reused=50, messages=2).length == "00016-00031"
    assert row(reused=0, messages=0).length == "none"


def test_tail_rows_takes_the_last_rows_of_changed_spans():
    changed, seen, short = (
        PlacedSpan(start=10, end=40, handle=1, unseen=((0, 10),)),
        PlacedSpan(start=40, end=60, handle=2),
        PlacedSpan(start=60, end=62, handle=3, num_gone=5),
    )
    view = ReuseView(num_tokens=70, num_layers=4, num_prefix=0, spans=(changed, seen, short))
    assert TailRows(k=3).plan(view, None).positions == (37, 38, 39, 60, 61)
    assert TailRows(k=3).budget(view) == 5 * 4
    assert TailRows(k=0).plan(view, None).positions == ()
    with pytest.raises(ValueError, match="0 or more"):
        TailRows(k=-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": "chain,fairy"}, "'fairy'"),
        ({"depths": "9"}, "'9'"),
        ({"families": "lookup", "depths": "3"}, "families' depths"),
        ({"topology": "ring"}, "parallel, chain, debate"),
        ({"question": "never"}, "last, first"),
        ({"reply_tokens": 5}, "--reply-tokens says nothing to the task worlds"),
        ({"name": TaskName.GSM8K}, "give --data"),
        ({"name": TaskName.RULER, "reply_tokens": 4, "depths": "1"}, "--depths says nothing"),
        ({"name": TaskName.RULER, "families": "chain"}, "needle, multikey, tracking, words"),
    ],
)
def test_task_options_that_can_not_be_used_are_named(changes, message):
    with pytest.raises(AgentKVError, match=re.escape(message)):
        TaskOptions(**changes).source()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": ["psychic"]}, "no such rule"),
        ({"peers": False, "rules": []}, "no rule to compare"),
        ({"kv_memory": "much"}, "kv_memory"),
        ({"ratios": "5%"}, "--ratio"),
    ],
)
def test_options_that_can_not_be_used_are_named(tmp_path, changes, message):
    with pytest.raises(AgentKVError, match=re.escape(message)):
        Settings.of(out=tmp_path, **changes)


def test_lists_of_options():
    assert chosen(None, ("a", "b"), "--x") == ["a", "b"]
    assert chosen("b, a,b", ("a", "b"), "--x") == ["b", "a"]
    assert chosen("2", (1, 2), "--x") == [2]
