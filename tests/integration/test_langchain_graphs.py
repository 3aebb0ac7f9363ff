"""LangGraph applications with `ChatAgentKV`: every agent is labelled without a word in the application."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from fakes import FakeService, running_server
from langchain_agentkv import ChatAgentKV

SHARED = FakeService()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SHARED) as url:
        yield url


@pytest.fixture
def service() -> FakeService:
    SHARED.__dict__.update(FakeService().__dict__)
    return SHARED


@pytest.fixture(params=["service", "url"])
def model(request: pytest.FixtureRequest, url: str, service: FakeService) -> ChatAgentKV:
    return ChatAgentKV(service=service) if request.param == "service" else ChatAgentKV(base_url=url)


TASK: Any = {"messages": [("human", "one two")]}
WORDS = ["one", " two", ""]


def chain(first: Callable[..., Any], second: Callable[..., Any]) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(MessagesState)
    graph.add_node("researcher", first)
    graph.add_node("writer", second)
    graph.add_edge(START, "researcher")
    graph.add_edge("researcher", "writer")
    graph.add_edge("writer", END)
    return graph.compile()


def sync_chain(model: ChatAgentKV) -> CompiledStateGraph[Any, Any, Any, Any]:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    return chain(node, node)


def async_chain(model: ChatAgentKV) -> CompiledStateGraph[Any, Any, Any, Any]:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return chain(node, node)


def check_labels(service: FakeService, messages: list[Any]) -> None:
    assert [message.name for message in messages] == [None, "researcher", "writer"]
    assert [request.agent for request in service.requests] == ["researcher", "writer"]
    assert [message.name for message in service.requests[1].messages] == [None, "researcher"]


def test_two_nodes(model: ChatAgentKV, service: FakeService) -> None:
    check_labels(service, sync_chain(model).invoke(TASK)["messages"])


async def test_two_nodes_async(model: ChatAgentKV, service: FakeService) -> None:
    check_labels(service, (await async_chain(model).ainvoke(TASK))["messages"])


def split(parts: list[Any]) -> tuple[list[Any], list[Any]]:
    """The streamed chunks and the final messages."""
    return [part[1][0] for part in parts if part[0] == "messages"], parts[-1][1]["messages"]


def check_stream(service: FakeService, parts: list[Any]) -> None:
    chunks, messages = split(parts)
    assert [(chunk.name, chunk.content) for chunk in chunks] == [
        (agent, word) for agent in ("researcher", "writer") for word in WORDS
    ]
    check_labels(service, messages)
    assert messages[-1].usage_metadata["output_tokens"] == 2


def test_two_nodes_streaming(model: ChatAgentKV, service: FakeService) -> None:
    check_stream(service, list(sync_chain(model).stream(TASK, stream_mode=["messages", "values"])))


async def test_two_nodes_streaming_async(model: ChatAgentKV, service: FakeService) -> None:
    stream = async_chain(model).astream(TASK, stream_mode=["messages", "values"])
    check_stream(service, [part async for part in stream])


def test_nodes_that_stream_themselves(model: ChatAgentKV, service: FakeService) -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        chunks = list(model.stream(state["messages"]))
        return {"messages": [("ai", "".join(str(chunk.content) for chunk in chunks))]}

    chain(node, node).invoke(TASK)
    assert [request.agent for request in service.requests] == ["researcher", "writer"]


def test_fan_out_and_fan_in(model: ChatAgentKV, service: FakeService) -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    names = [f"researcher {index}" for index in range(4)]
    for name in names:
        graph.add_node(name, node)
        graph.add_edge(START, name)
    graph.add_node("writer", node)
    graph.add_edge(names, "writer")
    messages = graph.compile().invoke(TASK)["messages"]
    assert sorted(message.name for message in messages[1:]) == [*names, "writer"]
    assert service.requests[-1].agent == "writer"
    assert sorted(str(message.name) for message in service.requests[-1].messages[1:]) == names


def test_agents_of_create_agent(model: ChatAgentKV, service: FakeService) -> None:
    agent = create_agent(model, tools=[], system_prompt="you decide", name="boss")
    messages = agent.invoke(TASK)["messages"]
    assert [message.name for message in messages] == [None, "boss"]
    assert (service.requests[0].agent, service.requests[0].messages[0].content) == ("boss", "you decide")


def test_an_agent_without_a_name_takes_the_node_s_around_it(model: ChatAgentKV, service: FakeService) -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("critic", create_agent(model, tools=[]))
    graph.add_edge(START, "critic")
    graph.compile().invoke(TASK)
    assert service.requests[0].agent == "critic"
