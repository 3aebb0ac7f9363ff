"""The demo's application on a scripted service: who reads whom, and what is taken down."""

from pathlib import Path

import pytest
from rich.console import Console

from agentkv.api import ChatRequest, Reuse
from agentkv.embedded import model_directory
from agentkv_evals.demo.case import Agent, Case, harbour_case, world_case
from agentkv_evals.demo.graph import build_graph
from agentkv_evals.demo.recording import RecordingService
from agentkv_evals.demo.run import choose_case
from agentkv_evals.demo.stream import run_graph
from fakes import FakeService
from langchain_agentkv import ChatAgentKV


def said_by(request: ChatRequest) -> list[str]:
    return [f"{request.agent} has read {len(request.messages)}"]


def small_case() -> Case:
    agents = [Agent(name=name, system=f"You are {name}.", task=f"{name}, speak.") for name in "abc"]
    return Case(
        title="small",
        researchers=tuple(agents),
        critic=Agent(name="critic", system="Doubt.", task="What is wrong?"),
        writer=Agent(name="writer", system="Write.", task="Write it.", reply="the end"),
    )


@pytest.fixture
def service() -> RecordingService:
    return RecordingService(FakeService(script=said_by))


def test_critic_and_writer_read_what_those_before_them_said(service: RecordingService) -> None:
    chat = ChatAgentKV(service=service, reuse=Reuse.OFF)
    said = run_graph(build_graph(small_case(), chat), Console(quiet=True), known={})
    assert said["critic"] == "critic has read 5"
    assert said["writer"] == "the end"
    assert set(service.exchanges) == {"a", "b", "c", "critic", "writer"}
    writer = service.exchanges["writer"]
    assert writer.reply == writer.request.forced_reply == "the end"
    assert [(message.role, message.name) for message in writer.request.messages] == [
        ("system", None), ("user", "a"), ("user", "b"), ("user", "c"), ("user", "critic"), ("user", None)
    ]  # fmt: skip
    reports = [message.content for message in service.exchanges["critic"].request.messages[1:4]]
    assert reports == ["a has read 2", "b has read 2", "c has read 2"]


def test_messages_are_shown_once_and_named_when_they_come_again(service: RecordingService) -> None:
    chat = ChatAgentKV(service=service)
    console = Console(width=80)
    with console.capture() as first:
        said = run_graph(build_graph(small_case(), chat), console, known={})
    with console.capture() as second:
        run_graph(build_graph(small_case(), chat), console, known=said | {"critic": "something else"})
    assert all(first.get().count(text) == 1 for text in said.values())
    assert second.get().count("the same words") == 4
    assert said["critic"] in second.get()


def test_the_authored_case_is_whole_and_of_real_length() -> None:
    case = harbour_case(authored=True)
    assert [agent.name for agent in case.agents] == [
        "researcher_1", "researcher_2", "researcher_3", "critic", "writer"
    ]  # fmt: skip
    assert all(400 <= len(agent.task.split()) <= 750 for agent in case.researchers)
    assert all(120 <= len((agent.reply or "").split()) <= 320 for agent in case.agents)
    assert all(agent.reply is None for agent in harbour_case(authored=False).agents)
    assert len({agent.system for agent in case.agents}) == 5


def test_only_the_trained_model_of_the_repository_reads_the_world_that_it_was_trained_on() -> None:
    world = world_case(0)
    assert choose_case(model_directory(), trained=True) == world
    assert all(agent.reply is None and agent.task for agent in world.agents)
    assert world.title.removesuffix("?") in world.writer.task
    assert choose_case(Path("another"), trained=True) == harbour_case(authored=False)
    assert choose_case(model_directory(), trained=False) == harbour_case(authored=True)
