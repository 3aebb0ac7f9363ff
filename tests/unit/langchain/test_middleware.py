"""`AgentKVMiddleware` in `create_agent`: what the service is told, and pins while tools run."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from agentkv.api import ChatDelta, ChatRequest, Reuse, ToolCallDelta
from agentkv.errors import InvalidRequest, RemoteError
from fakes import FakeService, running_server
from langchain_agentkv import ChatAgentKV
from langchain_agentkv.middleware import AgentKVMiddleware, ThreadPins
from segment_fakes import FakeSegments

SHARED = FakeService()
TASK: Any = {"messages": [("user", "hi")]}
CONFIG: Any = {"configurable": {"thread_id": "t"}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SHARED) as url:
        yield f"{url}/v1"


@pytest.fixture
def service() -> FakeService:
    SHARED.__dict__.update(FakeService().__dict__)
    return SHARED


@pytest.fixture(params=["ChatAgentKV", "ChatOpenAI"])
def model(request: pytest.FixtureRequest, url: str, service: FakeService) -> Any:
    if request.param == "ChatAgentKV":
        return ChatAgentKV(service=service)
    return ChatOpenAI(base_url=url, api_key="none", model="fake/model", max_retries=0)  # pyright: ignore


async def test_the_service_is_told_who_asks_and_what_may_be_read(model: Any, service: FakeService) -> None:
    middleware = AgentKVMiddleware(reuse=Reuse.SCREENED, selector="repair_none")
    agent = create_agent(model, name="critic", middleware=[middleware], checkpointer=InMemorySaver())
    agent.invoke(TASK, CONFIG)
    await agent.ainvoke(TASK, CONFIG)
    for request in service.requests:
        assert (request.agent, request.thread) == ("critic", "t")
        assert (request.reuse, request.selector) == ("screened", "repair_none")


def test_a_label_of_one_s_own(model: Any, service: FakeService) -> None:
    create_agent(model, name="critic", middleware=[AgentKVMiddleware(label="boss")]).invoke(TASK)
    assert (service.requests[0].agent, service.requests[0].thread, service.requests[0].reuse) == ("boss", None, None)


def call_once(request: ChatRequest) -> list[str | ChatDelta]:
    calls = tuple(ToolCallDelta(index=n, call_id=str(n), name="look", arguments="{}") for n in range(2))
    return ["done"] if request.messages[-1].role == "tool" else [ChatDelta(tool_calls=calls)]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_thread_is_pinned_while_its_tools_run(asynchronous: bool) -> None:
    segments = FakeSegments({"1": {"t"}, "2": {"other"}, "3": {"t", "other"}})
    segments.pin("3")
    seen: list[set[str]] = []

    @tool
    def look() -> str:
        """Look."""
        seen.append(set(segments.pinned))
        return "seen"

    agent = create_agent(
        ChatAgentKV(service=FakeService(script=call_once)),
        [look],
        middleware=[AgentKVMiddleware(pin=segments)],
        checkpointer=InMemorySaver(),
    )
    state = await agent.ainvoke(TASK, CONFIG) if asynchronous else agent.invoke(TASK, CONFIG)
    assert state["messages"][-1].text == "done"
    assert seen == [{"1", "3"}] * 2
    assert segments.pinned == {"3"}, "what was pinned before stays pinned"


def test_pins_end_with_the_last_holder_and_survive_what_is_gone() -> None:
    segments = FakeSegments({"1": {"t"}, "2": {"t"}})
    segments.full_at = 1
    pins = ThreadPins(segments)
    with pins.hold("t"):
        with pins.hold("t"):
            assert segments.pinned == {"1"}
        assert segments.pinned == {"1"}
        segments.delete(segment_id="1")
    assert segments.pinned == set()
    with pytest.raises(InvalidRequest):
        segments.pin("1")


def test_a_server_that_fails_costs_no_tool_and_leaves_no_pins(caplog: pytest.LogCaptureFixture) -> None:
    """The pin that failed may stand all the same; the one that can't be ended is ended next time."""
    segments = FakeSegments({"1": {"t"}, "2": {"t"}})
    pins = ThreadPins(segments)
    down = RemoteError("unreachable")
    with pins.hold("t"):
        segments.failure = down
    assert segments.pinned == {"1", "2"}
    with pins.hold("t"):
        segments.failure = None
    assert "unreachable" in caplog.text
    assert segments.pinned == set()
    with pins.hold("t"):
        assert segments.pinned == {"1", "2"}
    assert segments.pinned == set()


def test_a_pin_whose_answer_is_lost_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = FakeSegments({"1": {"t"}, "2": {"t"}})
    pin = segments.pin

    def pin_unheard(segment_id: str) -> None:
        pin(segment_id)
        raise RemoteError("connection broken")

    monkeypatch.setattr(segments, "pin", pin_unheard)
    with ThreadPins(segments).hold("t"):
        assert segments.pinned == {"1"}
    assert segments.pinned == set()


def test_a_server_that_is_gone_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = FakeSegments({name: {"t"} for name in "123"})
    pins, asked = ThreadPins(segments), []

    def unpin(segment_id: str) -> bool:
        asked.append(segment_id)
        raise RemoteError("unreachable")

    with pins.hold("t"), monkeypatch.context() as patch:
        patch.setattr(segments, "unpin", unpin)
        pins.leave("t")
        assert len(asked) == 1
        pins.take("t")
        assert len(set(asked)) == 2, "the next time another is tried first"
    assert segments.pinned == set()


async def test_a_cancelled_tool_leaves_no_pins() -> None:
    segments = FakeSegments({"1": {"t"}})
    segments.slow = threading.Event()
    pins = ThreadPins(segments)

    async def tool() -> None:
        async with pins.ahold("t"):
            raise AssertionError("the tool was cancelled before it began")

    running = asyncio.create_task(tool())
    await asyncio.to_thread(segments.listing.wait)
    running.cancel()
    await asyncio.sleep(0)
    segments.slow.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert segments.pinned == set()
    with pins.hold("t"):
        assert segments.pinned == {"1"}


def test_a_tool_that_fails_leaves_no_pins() -> None:
    segments = FakeSegments({"1": {"t"}})
    with pytest.raises(ZeroDivisionError), ThreadPins(segments).hold("t"):
        raise ZeroDivisionError
    assert segments.pinned == set()
