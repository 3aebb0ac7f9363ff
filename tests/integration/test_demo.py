"""The demo as a user runs it, with the authored case; and the same steps with a model that writes by itself."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentkv.api import Reuse
from agentkv.config import ServiceConfig
from agentkv.service import Service
from agentkv_evals.demo.case import Agent, Case, harbour_case
from agentkv_evals.demo.graph import build_graph
from agentkv_evals.demo.measure import measure
from agentkv_evals.demo.recording import RecordingService
from agentkv_evals.demo.run import run_demo
from agentkv_evals.demo.stream import run_graph
from langchain_agentkv import ChatAgentKV
from small_models import PARAGRAPH

RESEARCHERS = ("researcher_1", "researcher_2", "researcher_3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one run of the demo printed and wrote."""

    text: str
    figures: dict[str, Any]

    def agent(self, name: str) -> dict[str, Any]:
        return next(agent for agent in self.figures["agents"] if agent["agent"] == name)


@pytest.fixture(scope="module")
def untrained(small_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that says of itself that it has learned nothing."""
    directory = tmp_path_factory.mktemp("untrained") / "model"
    shutil.copytree(small_model("qwen2"), directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | {"agentkv_trained": False}), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def demo(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    file = tmp_path_factory.mktemp("demo") / "figures.json"
    console = Console(width=80)
    with console.capture() as shown:
        run_demo(model=untrained, selector="query_attention(0.2)", json_file=file, console=console)
    return Shown(text=shown.get(), figures=json.loads(file.read_text(encoding="utf-8")))


def test_an_untrained_model_is_named_and_the_authored_replies_are_shown(demo: Shown) -> None:
    assert "the model is not trained" in demo.text
    assert demo.figures["trained"] is False
    shown = " ".join(demo.text.replace("│", " ").split())
    for agent in harbour_case(authored=True).agents:
        assert shown.count(" ".join((agent.reply or "").split("\n")[0].split())) == 1
    assert demo.text.count("the same words") == 5


def test_no_table_is_squashed_in_80_columns(demo: Shown) -> None:
    headings = ("prompt", "prefix", "reused", "repaired", "computed", "ratio", "alone", "shared", "top-1", "mean KL")
    assert all(heading in demo.text for heading in headings)
    assert "…" not in demo.text


def test_researchers_are_full_prefill_and_those_behind_them_read_segments(demo: Shown) -> None:
    for name in RESEARCHERS:
        agent = demo.agent(name)
        assert agent["tokens"]["computed"] == agent["tokens"]["prompt"]
        assert agent["agreement"] == 1.0
        assert agent["mean_kl"] < 1e-6
    for name in ("critic", "writer"):
        agent = demo.agent(name)
        tokens = agent["tokens"]
        assert tokens["reused"] > tokens["prompt"] / 2
        assert tokens["repaired"] > 0
        assert sum(tokens[source] for source in ("prefix", "reused", "repaired", "computed")) == tokens["prompt"]
        assert agent["row_layers"] < agent["full_row_layers"] / 2
        assert agent["kv_bytes"]["shared"] < agent["kv_bytes"]["alone"] * 0.7
        assert agent["mean_kl"] > 0
        assert agent["ttft"]["ratio"] == pytest.approx(agent["ttft"]["full"] / agent["ttft"]["reuse"])


def speaking_case() -> Case:
    """Agents whose replies the model writes."""
    words = PARAGRAPH.split()
    parts = [" ".join((words[shift:] + words)[:60]) for shift in (0, 40, 80)]
    return Case(
        title="short",
        researchers=tuple(
            Agent(name=name, system=f"You are {name}.", task=f"Part {part}\nReport.")
            for name, part in zip(RESEARCHERS, parts, strict=True)
        ),
        critic=Agent(name="critic", system="You doubt what you read.", task="What is wrong with these reports?"),
        writer=Agent(name="writer", system="You write one page.", task="Write the page now."),
        max_tokens=40,
    )


def test_a_model_that_writes_is_measured_on_its_full_prefill_replies(small_model: Callable[[str], Path]) -> None:
    case = speaking_case()
    names = [agent.name for agent in case.agents]
    config = ServiceConfig.from_values(kv_memory="64MiB")
    with Service.open(small_model("qwen2"), config) as service:
        recording = RecordingService(service)
        chat = ChatAgentKV(service=recording, reuse=Reuse.OFF, cache_salt="off", max_tokens=case.max_tokens)
        said = run_graph(build_graph(case, chat), Console(quiet=True), known={})
        figures = measure(service, recording.exchanges, names, "query_attention(0.3)", rounds=2)
        service.check()
    assert {name: exchange.reply for name, exchange in recording.exchanges.items()} == said
    by_agent = {each.agent: each for each in figures}
    assert list(by_agent) == names
    assert by_agent["writer"].usage.reuse.reused > 0
    assert all(each.fidelity.positions == each.usage.completion_tokens for each in figures)
    assert all(by_agent[name].fidelity.mismatched == 0 for name in RESEARCHERS)
    assert sum(each.bytes_shared for each in figures) < sum(each.bytes_alone for each in figures)
