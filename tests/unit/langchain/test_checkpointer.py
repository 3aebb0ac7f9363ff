"""A checkpointer that takes a deleted thread's segments along."""

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from fakes import FakeService
from langchain_agentkv import ChatAgentKV
from langchain_agentkv.checkpointer import ThreadCleanup
from segment_fakes import FakeSegments


@pytest.fixture
def segments() -> FakeSegments:
    return FakeSegments({"1": {"a"}, "2": {"b"}, "3": {"a", "b"}})


def graph_with(checkpointer: Any) -> Any:
    model = ChatAgentKV(service=FakeService())
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_edge(START, "agent")
    graph.add_edge("agent", END)
    return graph.compile(checkpointer=checkpointer)


def at(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


async def test_it_checkpoints_like_the_saver(segments: FakeSegments) -> None:
    saver = InMemorySaver()
    cleanup = ThreadCleanup(saver, segments)
    graph = graph_with(cleanup)
    graph.invoke({"messages": [("user", "one")]}, at("a"))
    await graph.ainvoke({"messages": [("user", "two")]}, at("a"))
    texts = [message.text for message in graph.get_state(at("a")).values["messages"]]
    assert texts == ["one", "one", "two", "two"]
    assert texts == [m.text for m in (await graph.aget_state(at("a"))).values["messages"]]
    assert list(cleanup.list(at("a"))) == list(saver.list(at("a")))
    assert [each async for each in cleanup.alist(at("a"))] == [each async for each in saver.alist(at("a"))]
    assert len(list(graph.get_state_history(at("a")))) > 4


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_deleted_thread_takes_its_own_segments_along(segments: FakeSegments, asynchronous: bool) -> None:
    cleanup = ThreadCleanup(InMemorySaver(), segments)
    graph = graph_with(cleanup)
    for thread in ("a", "b"):
        graph.invoke({"messages": [("user", "one")]}, at(thread))
    if asynchronous:
        await cleanup.adelete_thread("a")
    else:
        cleanup.delete_thread("a")
    assert segments.threads.keys() == {"2", "3"}
    assert graph.get_state(at("a")).values == {}
    assert len(graph.get_state(at("b")).values["messages"]) == 2


def test_it_wraps_every_method_of_the_saver() -> None:
    """A method that is not handed on would fall back to the base class, which knows no checkpoints."""
    own = vars(ThreadCleanup).keys() | {"get", "aget"}  # these two ask get_tuple and aget_tuple
    base = {name for cls in (InMemorySaver.__mro__) for name in vars(cls) if not name.startswith("_")}
    public = {name for name in base if callable(getattr(InMemorySaver, name)) and hasattr(ThreadCleanup, name)}
    assert public - own == set()
