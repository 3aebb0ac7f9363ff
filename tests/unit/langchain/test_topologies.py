"""The graph builders: who speaks when, and what each agent sees of the others."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph

from agentkv.api import ChatRequest
from fakes import FakeService
from langchain_agentkv import ChatAgentKV, ReuseReport
from langchain_agentkv.topologies import (
    Agent,
    debate,
    map_reduce,
    plan_execute,
    seen_by,
    supervisor,
    swarm,
)

Graph = StateGraph[Any, None, Any, Any]


def says_who(request: ChatRequest) -> list[str]:
    """Each agent says its name and how many messages it read."""
    return [f"{request.agent} {len(request.messages)}"]


@pytest.fixture
def service() -> FakeService:
    return FakeService(script=says_who)


@pytest.fixture
def model(service: FakeService) -> ChatAgentKV:
    return ChatAgentKV(service=service)


def agent(model: ChatAgentKV, name: str, **fields: Any) -> Agent:
    return Agent(name=name, model=model, system=f"you are {name}", **fields)


def texts(messages: Sequence[AnyMessage]) -> list[str]:
    return [message.text for message in messages]


async def run(graph: Graph, state: dict[str, Any]) -> list[str]:
    """The thread of a graph; sync and async must give the same."""
    compiled = graph.compile()
    thread = texts(compiled.invoke(state)["messages"])
    assert texts((await compiled.ainvoke(state))["messages"]) == thread
    return thread


def rule(*names: str) -> Any:
    """Each of these once, in order."""
    return lambda thread: next((name for name in names if name not in {message.name for message in thread}), None)


async def test_a_supervisor_asks_until_it_ends(model: ChatAgentKV) -> None:
    graph = supervisor([agent(model, "b"), agent(model, "a")], rule("a", "b"))
    assert await run(graph, {"messages": [("user", "go")]}) == ["go", "a 2", "b 3"]


async def test_a_swarm_hands_over_before_and_after_an_answer(model: ChatAgentKV) -> None:
    def hand_over(thread: list[AnyMessage]) -> str | None:
        return {"for b": "b", "b 2": "a"}.get(thread[-1].text)

    graph = swarm([agent(model, "a"), agent(model, "b")], hand_over)
    assert await run(graph, {"messages": [("user", "for all")]}) == ["for all", "a 2"]
    assert await run(graph, {"messages": [("user", "for b")]}) == ["for b", "b 2", "a 3"]


def test_a_swarm_goes_on_with_whoever_was_active(model: ChatAgentKV) -> None:
    graph = swarm([agent(model, "a"), agent(model, "b")], lambda thread: {"b?": "b"}.get(thread[-1].text))
    compiled = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    compiled.invoke({"messages": [("user", "b?")]}, config)
    state = compiled.invoke({"messages": [("user", "more")]}, config)
    assert texts(state["messages"]) == ["b?", "b 2", "more", "b 4"]


async def test_debaters_speak_at_once_and_read_earlier_rounds(model: ChatAgentKV) -> None:
    graph = debate([agent(model, "pro"), agent(model, "con")], agent(model, "judge"), rounds=2)
    thread = await run(graph, {"messages": [("user", "go")]})
    assert thread == ["go", "con 2", "pro 2", "con 4", "pro 4", "judge 6"]


async def test_mappers_see_their_item_and_the_reducer_sees_all_in_order(
    model: ChatAgentKV, service: FakeService
) -> None:
    def mapper(number: int, text: str) -> Agent:
        return agent(model, f"m{number}", task=text)

    graph = map_reduce(mapper, agent(model, "r", task="sum up"))
    assert await run(graph, {"items": ["x", "y", "z"]}) == ["m1 2", "m2 2", "m3 2", "r 5"]
    assert {request.messages[-1].content for request in service.requests} == {"x", "y", "z", "sum up"}
    assert await run(graph, {"items": []}) == ["r 2"]


async def test_a_plan_is_worked_off_step_by_step(model: ChatAgentKV, service: FakeService) -> None:
    graph = plan_execute(lambda thread: ["first", "second"], agent(model, "worker"), agent(model, "writer"))
    assert await run(graph, {"messages": [("user", "go")]}) == ["go", "worker 3", "worker 4", "writer 4"]
    assert [request.messages[-1].content for request in service.requests[:2]] == ["first", "second"]


def test_others_are_users_with_names_and_one_s_own_replies_stay() -> None:
    thread: list[AnyMessage] = [HumanMessage("q"), AIMessage("mine", name="a"), AIMessage("yours", name="b", id="7")]
    assert seen_by("a", thread) == [*thread[:2], HumanMessage("yours", name="b", id="7")]


def test_tasks_may_depend_on_the_thread(model: ChatAgentKV, service: FakeService) -> None:
    agent(model, "a", task=lambda thread: f"after {len(thread)}").speak([HumanMessage("x")])
    assert texts_of(service.requests[0]) == ["you are a", "x", "after 1"]


def texts_of(request: ChatRequest) -> list[str]:
    return [message.content for message in request.messages]


def test_any_runnable_with_a_name_is_a_member(model: ChatAgentKV) -> None:
    other = RunnableLambda(lambda state: {"messages": [AIMessage("hi", name="other")]}, name="other")
    state = supervisor([other], rule("other")).compile().invoke({"messages": [("user", "go")]})
    assert texts(state["messages"]) == ["go", "hi"]


def test_labels_are_the_agents_names(model: ChatAgentKV) -> None:
    report = ReuseReport()
    graph = map_reduce(lambda number, text: agent(model, f"m{number}", task=text), agent(model, "r"))
    graph.compile().invoke({"items": ["x", "y"]}, {"callbacks": [report]})
    assert sorted(report.agents) == ["m1", "m2", "r"]


def test_what_cannot_be_built_or_chosen_is_said(model: ChatAgentKV) -> None:
    a = agent(model, "a")
    with pytest.raises(ValueError, match="names of their own"):
        supervisor([a, a], rule("a"))
    with pytest.raises(ValueError, match="it has: none"):
        supervisor([], rule("a"))
    with pytest.raises(ValueError, match="give at least 1"):
        debate([a], agent(model, "j"), rounds=0)
    with pytest.raises(ValueError, match="first is 'z'"):
        swarm([a], rule("a"), first="z")
    for graph in (supervisor([a], lambda _: "z"), swarm([a], lambda _: "z")):
        with pytest.raises(ValueError, match="'z'"):
            graph.compile().invoke({"messages": [("user", "go")]})
