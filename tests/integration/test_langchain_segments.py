"""`ChatAgentKV` and what a real service keeps, in process and behind a server: threads, pins, tokens."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from agentkv.api import Reuse
from agentkv.embedded import model_directory
from agentkv.errors import InvalidRequest
from agentkv.service import Service
from fakes import running_server
from langchain_agentkv import ChatAgentKV
from langchain_agentkv.checkpointer import ThreadCleanup
from langchain_agentkv.middleware import ThreadPins

REPORT = "Report 1: Karl is in the hut. Julia is in the park. Leon is in the workshop. Katja is in the office. "


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service.open(model_directory()) as service:
        yield service


@pytest.fixture(params=["service", "url"])
def model(request: pytest.FixtureRequest, service: Service) -> Iterator[ChatAgentKV]:
    settings: dict[str, Any] = {"reuse": Reuse.SCREENED, "max_tokens": 4, "selector": "repair_none"}
    service.segments.delete(all=True)
    if request.param == "service":
        yield ChatAgentKV(service=service, **settings)
        return
    with running_server(service) as url:
        yield ChatAgentKV(base_url=url, **settings)


def asking(model: ChatAgentKV, checkpointer: Any) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("writer", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_edge(START, "writer")
    return graph.compile(checkpointer=checkpointer)


def at(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def threads(model: ChatAgentKV) -> set[tuple[str, ...]]:
    return {each.threads for each in model.segments.list()}


async def test_a_deleted_thread_s_segments_go(model: ChatAgentKV) -> None:
    cleanup = ThreadCleanup(InMemorySaver(), model.segments)
    graph = asking(model, cleanup)
    graph.invoke({"messages": [("user", REPORT)]}, at("a"))
    await graph.ainvoke({"messages": [("user", REPORT.replace("Karl", "Nils"))]}, at("b"))
    assert threads(model) == {("a",), ("b",)}
    cleanup.delete_thread("a")
    assert threads(model) == {("b",)}
    await cleanup.adelete_thread("b")
    assert not model.segments.list()


def test_what_another_thread_has_met_stays(model: ChatAgentKV) -> None:
    cleanup = ThreadCleanup(InMemorySaver(), model.segments)
    graph = asking(model, cleanup)
    for thread in ("a", "b"):
        graph.invoke({"messages": [SystemMessage(f"You are {thread}."), HumanMessage(REPORT * 4)]}, at(thread))
    assert ("a", "b") in threads(model)
    cleanup.delete_thread("a")
    assert threads(model) == {("b",)}


def test_threads_are_pinned(model: ChatAgentKV) -> None:
    asking(model, InMemorySaver()).invoke({"messages": [("user", REPORT)]}, at("a"))
    with ThreadPins(model.segments).hold("a"):
        assert all(each.pinned for each in model.segments.list())
    assert not any(each.pinned for each in model.segments.list())


def test_tokens_are_counted_by_the_model_s_own_tokenizer(model: ChatAgentKV) -> None:
    messages = [SystemMessage("You are the writer."), HumanMessage(REPORT, name="researcher_1")]
    counted = model.get_num_tokens_from_messages(messages)
    usage = model.invoke(messages).usage_metadata
    assert usage is not None
    assert counted == usage["input_tokens"]
    assert 0 < model.get_num_tokens(REPORT) < counted


def test_what_a_service_does_not_offer_is_said() -> None:
    service: Any = SimpleNamespace(model_id="m")
    with pytest.raises(InvalidRequest, match="SimpleNamespace has no segments"):
        _ = ChatAgentKV(service=service).segments
