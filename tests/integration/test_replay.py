"""Replay on real engines: exact mode is full prefill, screened mode reads segments, a dropped offset shows."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentkv.api import Reuse
from agentkv.errors import ConfigError
from agentkv_engine.cache.key_table import Keys
from agentkv_evals.replay.run import run_replay
from small_models import PARAGRAPH

AGENTS = ("Tides_Expert", "Ships_Expert", "Computer_terminal", "Critic", "Writer")


def conversation(id_: str, num_messages: int) -> dict[str, Any]:
    """A group chat about the paragraph; every message is new text."""
    words = PARAGRAPH.split()
    messages = [{"agent": "human", "content": f"{id_}: what do the reports of the harbour office say?"}]
    for index, agent in enumerate(islice(cycle(AGENTS), num_messages)):
        shift = 17 * index + 5 * len(id_)
        text = " ".join((words[shift % len(words) :] + words)[:45])
        messages.append({"agent": agent, "content": f"{agent} {index}: {text}."})
    return {"id": id_, "question": "", "messages": messages}


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    file = tmp_path / "traces.jsonl"
    lines = [json.dumps(conversation("first", 7)), json.dumps(conversation("second one", 5))]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def replayed(traces: Path, small_model: Callable[[str], Path]) -> Callable[..., dict[str, Any]]:
    """`replayed(modes, ...)`: the JSON of a replay of the two conversations."""

    def run(*modes: Reuse, console: Console | None = None, **changes: Any) -> dict[str, Any]:
        file = traces.with_suffix(".json")
        options: dict[str, Any] = {
            "model": small_model("qwen2"),
            "modes": modes,
            "selector": "query_attention(0.2)",
            "num_turns": None,
            "max_context": 4096,
            "num_traces": None,
            "kv_memory": "64MiB",
            "json_file": file,
            "console": console or Console(quiet=True),
        }
        run_replay(traces, **options | changes)
        return json.loads(file.read_text(encoding="utf-8"))

    return run


def test_three_modes_over_the_same_turns(replayed: Callable[..., dict[str, Any]]) -> None:
    console = Console(width=80, record=True, quiet=False)
    with console.capture() as shown:
        result = replayed(*Reuse, console=console)
    totals = result["totals"]
    assert {mode: each["turns"] for mode, each in totals.items()} == {"off": 10, "exact": 10, "screened": 10}
    for each in totals.values():
        tokens = each["tokens"]
        assert sum(tokens[name] for name in ("prefix", "reused", "repaired", "computed")) == tokens["prompt"]
        assert tokens["prompt"] == totals["off"]["tokens"]["prompt"]
        assert each["full_row_layers"] == 3 * tokens["prompt"]
    off, exact, screened = (totals[mode] for mode in Reuse)
    assert off["row_layers"] == off["full_row_layers"]
    assert (off["mean_kl"], off["agreement"], off["ttft_ratio"]["median"]) == (0.0, 1.0, 1.0)
    assert exact["tokens"]["prefix"] > 0
    assert exact["mean_kl"] < 1e-6
    assert all(mismatch["only_ties"] for mismatch in exact["mismatched_turns"])
    assert screened["tokens"]["reused"] > 0 < screened["tokens"]["repaired"]
    assert screened["row_layers"] < exact["row_layers"] < off["row_layers"]
    assert screened["mean_kl"] > exact["mean_kl"]
    assert [each["id"] for each in result["traces"]] == ["first", "second one"]
    assert result["traces"][0]["modes"]["off"]["turns"] == 6
    assert result["environment"]["torch"]
    text = shown.get()
    assert all(heading in text for heading in ("first", "second one", "2 conversations", "repaired", "exact: "))
    assert "…" not in text


def test_a_rule_that_repairs_everything_is_not_worth_it_and_the_result_says_so(
    replayed: Callable[..., dict[str, Any]],
) -> None:
    result = replayed(Reuse.EXACT, Reuse.SCREENED, selector="repair_all")
    exact, screened = result["totals"]["exact"], result["totals"]["screened"]
    assert screened["tokens"] == exact["tokens"]
    assert screened["mean_kl"] < 1e-6
    assert sum(screened["misses"].values()) > sum(exact["misses"].values())


def test_long_turns_are_skipped_and_counted(replayed: Callable[..., dict[str, Any]]) -> None:
    off = replayed(max_context=700, num_traces=1)["totals"]["off"]
    assert off["turns"] > 0 < off["skipped_turns"]
    assert off["turns"] + off["skipped_turns"] == 6
    off = replayed(max_context=2)["totals"]["off"]
    assert (off["turns"], off["skipped_turns"], off["ttft_ratio"]) == (0, 10, None)


def test_a_dropped_offset_at_least_doubles_the_kl(
    replayed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: keys that are read at another position are turned as if they lay at home."""
    honest = replayed(Reuse.SCREENED, selector="repair_none")["totals"]["screened"]
    monkeypatch.setattr(Keys, "moved", lambda keys, distance: replace(keys))
    faulty = replayed(Reuse.SCREENED, selector="repair_none")["totals"]["screened"]
    assert faulty["tokens"] == honest["tokens"]
    assert faulty["mean_kl"] > 2 * honest["mean_kl"] > 0


def test_mistakes_are_found_before_the_model_is_loaded(replayed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make the folder"):
        replayed(json_file=tmp_path / "no" / "figures.json")
    with pytest.raises(ConfigError, match="kv_memory"):
        replayed(kv_memory="plenty")
