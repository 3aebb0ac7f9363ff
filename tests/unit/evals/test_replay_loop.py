"""The replay's loop on a scripted service: who is asked what, in which order, and what is compared with what."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console

from agentkv.api import ChatDelta, ChatRequest, Reuse, ReuseUsage, Usage
from agentkv_evals.replay.replay import Replay
from agentkv_evals.replay.report import to_json
from agentkv_evals.replay.show import exactness, table
from agentkv_evals.replay.trace import Said, Trace

TTFT = {Reuse.OFF: 0.4, Reuse.EXACT: 0.2, Reuse.SCREENED: 0.1}
BEST_TOKEN = {Reuse.OFF: 1, Reuse.EXACT: 1, Reuse.SCREENED: 2}


class ScriptedService:
    """Two logits a reply, in two chunks; best token and TTFT depend on the mode."""

    model_id = "scripted"

    def __init__(self) -> None:
        self.asked: list[tuple[ChatRequest, str]] = []

    def submit(self, request: ChatRequest, *, tenant: str = "") -> Any:
        self.asked.append((request, tenant))
        return self.stream(request)

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        assert request.reuse is not None
        logits = torch.zeros(1, 4)
        logits[0, BEST_TOKEN[request.reuse]] = 3.0
        yield ChatDelta(text="a", token_ids=(1,), logits=logits)
        reuse = ReuseUsage(computed=8, row_layers=16, full_row_layers=32)
        usage = Usage(prompt_tokens=8, completion_tokens=2, reuse=reuse, ttft=TTFT[request.reuse])
        yield ChatDelta(text="", token_ids=(2,), logits=logits, finish_reason="stop", usage=usage)

    def close(self) -> None:
        pass


def trace_of(num_turns: int, id_: str = "one") -> Trace:
    said = [Said(agent=f"agent_{i}", content=f"words {i}", by_model=True) for i in range(num_turns + 1)]
    return Trace(id=id_, messages=tuple(said))


def everything_fits(turn: Any) -> bool:
    return True


def test_modes_take_turns_in_being_first_and_share_nothing() -> None:
    service = ScriptedService()
    replay = Replay(service, modes=list(Reuse), fits=everything_fits, selector="repair_none")
    replay.play(trace_of(3))
    order = [request.reuse for request, _ in service.asked]
    off, exact, screened = Reuse
    assert order == [off, exact, screened, exact, screened, off, screened, off, exact]
    assert {tenant for _, tenant in service.asked} == {"off/one", "exact/one", "screened/one"}
    assert {request.selector for request, _ in service.asked if request.reuse is screened} == {"repair_none"}
    assert {request.selector for request, _ in service.asked if request.reuse is not screened} == {None}
    assert all(request.return_logits and request.forced_reply for request, _ in service.asked)


def test_full_prefill_always_runs() -> None:
    replay = Replay(ScriptedService(), modes=[Reuse.SCREENED], fits=everything_fits)
    assert replay.modes == (Reuse.OFF, Reuse.SCREENED)


def test_turns_that_do_not_fit_are_skipped_counted_and_never_asked() -> None:
    service, seen = ScriptedService(), []
    replay = Replay(service, modes=[], fits=lambda turn: turn.index != 2, num_turns=3)
    played = replay.play(trace_of(5), on_turn=lambda: seen.append(1))
    assert (played.skipped, len(seen)) == (1, 3)
    assert [turn.turn for turn in played.measured[Reuse.OFF]] == [1, 3]
    assert [request.forced_reply for request, _ in service.asked] == ["words 1", "words 3"]


def test_results_are_those_of_the_issue() -> None:
    replay = Replay(ScriptedService(), modes=list(Reuse), fits=lambda turn: turn.index < 3)
    played = [replay.play(trace_of(3, "one")), replay.play(trace_of(1, "two"))]
    result = to_json(played, replay.modes)
    totals = result["totals"]
    assert set(totals) == {"off", "exact", "screened"}
    screened = totals["screened"]
    assert (screened["turns"], screened["skipped_turns"]) == (3, 1)
    assert screened["tokens"] == {"prompt": 24, "prefix": 0, "reused": 0, "repaired": 0, "computed": 24}
    assert (screened["row_layers"], screened["full_row_layers"]) == (48, 96)
    assert screened["ttft_ratio"] == {"median": pytest.approx(4.0), "p90": pytest.approx(4.0)}
    assert (screened["agreement"], totals["exact"]["agreement"]) == (0.0, 1.0)
    assert screened["mean_kl"] > 0.1
    assert totals["exact"]["mismatched_turns"] == []
    mismatch = screened["mismatched_turns"][0]
    assert (mismatch["trace"], mismatch["turn"], mismatch["positions"], mismatch["only_ties"]) == ("one", 1, 2, False)
    assert [each["id"] for each in result["traces"]] == ["one", "two"]
    assert result["traces"][1]["modes"]["off"]["turns"] == 1


def test_tables_fit_80_columns_even_without_a_turn() -> None:
    replay = Replay(ScriptedService(), modes=list(Reuse), fits=lambda turn: turn.index < 2)
    played = [replay.play(trace_of(2)), replay.play(trace_of(0))]
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(table("one", played[:1], replay.modes))
        console.print(table("nothing", played[1:], replay.modes))
    assert "…" not in shown.get()
    assert "(1 skipped)" in shown.get()
    assert "repaired" in shown.get()
    assert exactness(played) == "exact: the best token is full prefill's at all 2 positions."
