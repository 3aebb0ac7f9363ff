"""`ChatOpenAI` with agentkv's HTTP clients: the server learns which agent asks."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

from fakes import FakeService, running_server
from langchain_agentkv import agentkv_async_http_client, agentkv_http_client

SHARED = FakeService()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SHARED) as url:
        yield f"{url}/v1"


@pytest.fixture
def service() -> FakeService:
    SHARED.__dict__.update(FakeService().__dict__)
    return SHARED


def graph_of(model: ChatOpenAI) -> Any:
    async def anode(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("critic", node)
    graph.add_node("writer", anode)
    graph.add_edge(START, "critic")
    graph.add_edge("critic", "writer")
    graph.add_edge("writer", END)
    return graph.compile()


async def test_chat_openai_says_which_node_asks(url: str, service: FakeService) -> None:
    with agentkv_http_client() as client:
        async with agentkv_async_http_client() as async_client:
            model = ChatOpenAI(
                base_url=url,
                api_key="none",  # pyright: ignore[reportArgumentType]
                model="fake/model",
                max_retries=0,
                http_client=client,
                http_async_client=async_client,
            )
            text = "a message with ünicode"
            state = await graph_of(model).ainvoke({"messages": [("user", text)]}, {"configurable": {"thread_id": 7}})
            assert [request.agent for request in service.requests] == ["critic", "writer"]
            assert [message.content for message in state["messages"]] == [text] * 3
            model.invoke("no graph")
            assert service.requests[-1].agent is None


def sent(body: Any, path: str = "/v1/chat/completions", config: Any = None) -> dict[str, Any]:
    """The body that leaves a node."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    def node(state: MessagesState) -> None:
        with agentkv_http_client(transport=httpx.MockTransport(answer)) as client:
            client.post(f"http://x{path}", json=body)

    graph = StateGraph(MessagesState)
    graph.add_node("critic", node)
    graph.add_edge(START, "critic")
    graph.compile().invoke({"messages": []}, config)
    assert int(seen[0].headers["content-length"]) == len(seen[0].content)
    return json.loads(seen[0].content)


def test_what_the_application_says_itself_stays() -> None:
    assert sent({"agent_hint": "boss"}) == {"agent_hint": "boss"}


def test_the_thread_goes_along() -> None:
    config = {"configurable": {"thread_id": "t1"}}
    assert sent({"model": "m"}, config=config) == {"model": "m", "agent_hint": "critic", "session_id": "t1"}


def test_other_requests_stay_as_they_are() -> None:
    assert sent({"input": "x"}, path="/v1/embeddings") == {"input": "x"}
