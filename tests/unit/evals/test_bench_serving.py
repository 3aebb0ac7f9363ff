"""The benchmark of serving on CPU: what its figures mean, that a run goes on where it was, and what is refused."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from agentkv.errors import ConfigError, InvalidRequest
from agentkv_evals.bench.serving import run as serving_run
from agentkv_evals.bench.serving.conversations import Ask, Load, Lot, Maker
from agentkv_evals.bench.serving.figures import is_sustained, together
from agentkv_evals.bench.serving.run import ServeSettings, run_serving

TINY = ServeSettings(
    shape="small",
    loads=(Load.FAN_IN,),
    trace_file=None,
    concurrency=(1,),
    selectors=("reading_change(0.05)",),
    agents=(3, 3),
    tokens=(20, 24),
    reply_tokens=(8, 12),
    talk_rounds=1,
    seconds=200.0,
    conversations=1,
    rounds=1,
    kv_memory="32MiB",
    host_kv_memory="0",
    device="cpu",
    seed=0,
)


def run(settings: ServeSettings, file: Path) -> dict:
    content = run_serving(settings, json_file=file, console=Console(file=io.StringIO()))
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(content))
    return content


def test_all_arms_serve_the_same_conversations_and_a_run_goes_on(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "traces.jsonl"
    said = [{"agent": f"Expert_{number % 2}", "content": "One two three, and so on. " * 3} for number in range(3)]
    trace.write_text(json.dumps({"id": "1", "messages": said}) + "\n", encoding="utf-8")
    file, settings = tmp_path / "figures.json", replace(TINY, trace_file=trace)
    content = run(settings, file)
    prompts = {"fan-in": 3, "replay of traces.jsonl": 2}
    assert content["summary"].keys() == prompts.keys()
    for load, told in content["summary"].items():
        assert {name: cell["requests"] for name, cell in told["cells"].items()} == {
            f"1 {arm}": prompts[load] for arm in ("full", "exact", "reading_change(0.05)")
        }
        full, exact, screened = told["cells"].values()
        assert full["sources"] == {"prefix": 0, "reused": 0, "repaired": 0, "computed": 1}
        assert exact["sources"]["reused"] == 0
        assert told["left_by_exact"] == pytest.approx(1 - exact["sources"]["prefix"])
        assert screened["sources"]["reused"] > 0
        assert screened["row_layers_share"] < full["row_layers_share"] == 1

    async def nothing_is_left(*_args: object, **_options: object) -> None:
        raise AssertionError("this cell is in the file")

    monkeypatch.setattr(serving_run, "_measure", nothing_is_left)
    with pytest.raises(AssertionError, match="in the file"):
        run(settings, tmp_path / "new.json")
    with pytest.raises(ConfigError, match="other settings"):
        run(replace(settings, seed=1), file)


def test_a_conversation_is_the_same_whoever_answers_it() -> None:
    maker = Maker(Load.FAN_IN, Lot(agents=(3, 3), tokens=(20, 24), num_rounds=2, count=len), seed=3)

    def asked(number: int) -> list[Ask]:
        conversation, asks = maker(number, "any"), []
        for batch in conversation.rounds:
            asks += batch
            conversation.said = [f"{ask.agent} says so" for ask in batch]
        return asks

    assert asked(0) == asked(0) != asked(1)
    assert [ask.agent for ask in asked(0)] == 2 * ["agent_1", "agent_2", "agent_0"]
    first, second, last = asked(0)[:3]
    assert [m.name for m in last.messages if m.name] == ["agent_1", "agent_1", "agent_2", "agent_2"]
    heard = {m.content for m in last.messages if m.name}
    assert heard >= {"agent_1 says so", "agent_2 says so"}
    assert heard >= {m.content for ask in (first, second) for m in ask.messages if m.name}


def test_sustained_means_both_bounds_at_the_90th_percentile() -> None:
    good = {"ttft_ms": [100.0] * 19 + [5000.0], "tpot_ms": [20.0] * 20}
    assert is_sustained(good)
    assert not is_sustained(together([good, {"ttft_ms": [501.0] * 5, "tpot_ms": []}]))
    assert not is_sustained({"ttft_ms": [100.0], "tpot_ms": [51.0]})
    assert not is_sustained({"ttft_ms": [], "tpot_ms": []})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"agents": (5, 3)}, "range from 5 to 3"),
        ({"agents": (1, 3)}, "nobody to talk to"),
        ({"loads": ()}, "nothing to serve"),
        ({"selectors": ("best",)}, "there is no such rule"),
        ({"kv_memory": "much"}, "kv_memory"),
    ],
)
def test_wrong_options_are_named(options: dict, reason: str) -> None:
    with pytest.raises((ConfigError, InvalidRequest), match=reason):
        run_serving(replace(TINY, **options), json_file=None, console=Console(file=io.StringIO()))


def test_a_file_of_something_else_is_left_alone(tmp_path) -> None:
    file = tmp_path / "notes.json"
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="give another file"):
        run_serving(TINY, json_file=file, console=Console(file=io.StringIO()))
    assert file.read_text(encoding="utf-8") == "[]"
    with pytest.raises(ConfigError, match="make the folder"):
        run_serving(TINY, json_file=tmp_path / "no" / "file.json", console=Console(file=io.StringIO()))
