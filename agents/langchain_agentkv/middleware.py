"""Middleware for `langchain.agents.create_agent`: how one agent uses kept KV, whatever chat model it has.

agent = create_agent(model, tools, name="critic", middleware=[AgentKVMiddleware(reuse=Reuse.EXACT)])
"""

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.tools.tool_node import ToolCallRequest
from langchain_core.messages import ToolMessage
from langchain_core.runnables import ensure_config
from langgraph.types import Command

from agentkv.api import Reuse
from agentkv.errors import AgentKVError, InvalidRequest
from agentkv.segment_api import SegmentManager
from langchain_agentkv.chat_model import ChatAgentKV
from langchain_agentkv.provenance import Provenance

Answered = ToolMessage | Command[Any]

_logger = logging.getLogger(__name__)


class AgentKVMiddleware(AgentMiddleware):
    """Tells the server which agent and thread a call is for, and how much kept KV it may read.

    Works with `ChatAgentKV`, and with any model that takes OpenAI's `extra_body` (`ChatOpenAI`) on an agentkv server.

    Args:
        label: of the agent; None takes it from LangGraph.
        reuse: how much kept KV its calls may read; None leaves it to the model or the server.
        selector: rule that chooses the repaired rows.
        pin: while the agent's tools run, keep the thread's segments from being dropped for want of room; give the
            segments of the service or server (`ChatAgentKV.segments`).
    """

    def __init__(
        self,
        *,
        label: str | None = None,
        reuse: Reuse | None = None,
        selector: str | None = None,
        pin: SegmentManager | None = None,
    ) -> None:
        super().__init__()
        self._label = label
        self._reuse = reuse
        self._selector = selector
        self._pins = None if pin is None else ThreadPins(pin)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Add label, thread and reuse to the call."""
        return handler(self._told(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`."""
        return await handler(self._told(request))

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Answered]) -> Answered:
        """Run a tool with the thread's segments pinned."""
        thread = self._provenance.thread
        if self._pins is None or thread is None:
            return handler(request)
        with self._pins.hold(thread):
            return handler(request)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Answered]]
    ) -> Answered:
        """As `wrap_tool_call`."""
        thread = self._provenance.thread
        if self._pins is None or thread is None:
            return await handler(request)
        async with self._pins.ahold(thread):
            return await handler(request)

    @property
    def _provenance(self) -> Provenance:
        return Provenance.of(ensure_config().get("metadata", {}))

    def _told(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        who = self._provenance
        agent = self._label or who.agent
        if isinstance(request.model, ChatAgentKV):
            added = {"agent": agent, "thread": who.thread, "reuse": self._reuse, "selector": self._selector}
            return request.override(model_settings=_given(added) | request.model_settings)
        vendor = _given({"reuse": self._reuse, "selector": self._selector})
        body = _given({"agent_hint": agent, "session_id": who.thread, "agentkv": vendor or None})
        body |= request.model_settings.get("extra_body") or {}
        return request.override(model_settings={**request.model_settings, "extra_body": body})


class ThreadPins:
    """Pins on the segments of threads; tools of one thread that run at once share them.

    A tool runs whether or not the segments can be pinned: what a server that can't be reached keeps is not worth its
    failure. A pin that can't be ended is tried again when the next tool begins or ends.

    Args:
        segments: whose.
    """

    def __init__(self, segments: SegmentManager) -> None:
        self._segments = segments
        self._lock = threading.Lock()
        self._holders: Counter[str] = Counter()
        self._pinned: dict[str, list[str]] = {}
        self._to_unpin: deque[str] = deque()

    @contextmanager
    def hold(self, thread: str) -> Iterator[None]:
        """Pins while in the block."""
        self.take(thread)
        try:
            yield
        finally:
            self.leave(thread)

    @asynccontextmanager
    async def ahold(self, thread: str) -> AsyncIterator[None]:
        """As `hold`; the pins end also where the task is cancelled while they are taken."""
        taking = asyncio.create_task(asyncio.to_thread(self.take, thread))
        try:
            await asyncio.shield(taking)
            yield
        finally:
            await asyncio.shield(asyncio.create_task(self._leave_after(taking, thread)))

    async def _leave_after(self, taking: "asyncio.Task[None]", thread: str) -> None:
        await taking
        await asyncio.to_thread(self.leave, thread)

    def take(self, thread: str) -> None:
        """Pin the thread's segments, if nobody holds them yet. What is gone or has no room stays unpinned."""
        with self._lock:
            self._unpin_left()
            self._holders[thread] += 1
            if self._holders[thread] == 1:
                self._pinned[thread] = pinned = []
                try:
                    self._pin_all(thread, pinned)
                except AgentKVError as error:
                    _logger.warning("segments of thread %r can't be pinned, its tools run without: %s", thread, error)

    def leave(self, thread: str) -> None:
        """End the pins with the last holder."""
        with self._lock:
            self._holders[thread] -= 1
            if not self._holders[thread]:
                del self._holders[thread]
                self._to_unpin += self._pinned.pop(thread)
            self._unpin_left()

    def _pin_all(self, thread: str, pinned: list[str]) -> None:
        for each in self._segments.list():
            if thread in each.threads and not each.pinned:
                self._pin(each.segment_id, pinned)

    def _pin(self, segment_id: str, pinned: list[str]) -> None:
        pinned.append(segment_id)  # first: a pin whose answer is lost has to be ended too
        try:
            self._segments.pin(segment_id)
        except InvalidRequest:  # dropped since it was listed, or no budget left for pins
            pinned.pop()

    def _unpin_left(self) -> None:
        """End the pins that nobody holds. From the first that can't be ended now on they stay for the next time, that
        one last: a server that is gone is waited for once."""
        while self._to_unpin:
            if not self._unpin(self._to_unpin[0]):
                self._to_unpin.rotate(-1)
                return
            self._to_unpin.popleft()

    def _unpin(self, segment_id: str) -> bool:
        try:
            self._segments.unpin(segment_id)
        except InvalidRequest:  # deleted meanwhile
            return True
        except AgentKVError as error:
            _logger.warning("segment %s can't be unpinned now: %s", segment_id, error)
            return False
        return True


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
