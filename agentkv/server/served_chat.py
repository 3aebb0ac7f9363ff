"""Chats that run on behalf of an HTTP client: they end when the client goes, and each is counted once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from starlette.types import Receive

from agentkv.agent_statistics import AgentStatistics
from agentkv.api import ChatDelta, ChatStream, Usage, usage_together
from agentkv.errors import ServiceClosed
from agentkv.metrics import Metrics
from agentkv.server.errors import ApiError, client_gone, from_service_error
from agentkv.server.gate import RETRY_SECONDS
from agentkv.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Counting:
    """Where a tenant's chats are counted."""

    metrics: Metrics
    statistics: AgentStatistics
    tenant: str

    def observe(self, usage: Usage) -> None:
        """A chat has come to its own end."""
        self.metrics.observe(usage)
        self.statistics.observe(self.tenant, usage)


class ServedChat:
    """One chat's stream, with what its last delta said.

    Attributes:
        finish_reason, usage: known once `deltas` is exhausted.
    """

    finish_reason: str
    usage: Usage

    def __init__(self, stream: ChatStream, counting: Counting) -> None:
        self._stream = stream
        self._counting = counting
        self._ended_by: ApiError | None = None
        self._has_begun = False
        self._counted = False

    def end(self, reason: ApiError) -> None:
        """Abort the chat for a reason that its reader is told."""
        self._ended_by = self._ended_by or reason
        self._stream.cancel()

    def end_unless_begun(self, reason: ApiError) -> None:
        """Abort the chat if it still waits for its first token."""
        if not self._has_begun:
            self.end(reason)

    def leave(self) -> None:
        """Nothing more is read: cancel what still runs, and count it unless it has been."""
        self._stream.cancel()
        self._count("client_closed_request")

    async def deltas(self) -> AsyncGenerator[ChatDelta]:
        """Pieces of the reply; the last one ends the chat.

        Raises:
            ApiError: the chat failed or was aborted.
        """
        last: ChatDelta | None = None
        try:
            async for last in self._stream:
                self._has_begun = True
                if last.finish_reason is None:
                    yield last
            self.finish_reason, self.usage = self._ending(last)
        except Exception as error:
            failure = from_service_error(error)
            self._count(failure.code or "error")
            raise failure from error
        self._counting.observe(self.usage)
        self._count(self.finish_reason)
        assert last is not None
        yield last

    def _ending(self, last: ChatDelta | None) -> tuple[str, Usage]:
        if last is None or last.finish_reason is None or last.usage is None:
            raise RuntimeError(f"the service ended a chat without finish reason and usage; its last delta was {last}")
        if last.finish_reason == "abort":
            raise self._ended_by or ServiceClosed("the server aborted this chat: ask again")
        return last.finish_reason, last.usage

    def _count(self, outcome: str) -> None:
        if not self._counted:
            self._counted = True
            self._counting.metrics.count_request(outcome)


class ServedChats:
    """The chats behind one HTTP request: one for each choice that was asked for.

    Args:
        chats: as submitted.
        settings: how long they may take.
        leave: leaves them, and gives back the room that they took.
        choices_each: so many, one after the other, have one prompt.
    """

    def __init__(
        self,
        chats: Sequence[ServedChat],
        settings: ServerSettings,
        leave: Callable[[], None],
        choices_each: int | None = None,
    ) -> None:
        self._chats = tuple(chats)
        self._leave = leave
        self._choices_each = choices_each or len(self._chats)
        self._first_token_timeout = settings.first_token_timeout
        self._request_timeout = settings.request_timeout

    @asynccontextmanager
    async def while_connected(self, receive: Receive) -> AsyncIterator[None]:
        """Cancel the chats once the client hangs up or their time is over, and in any case at the end of the block.

        Args:
            receive: ASGI's, from which the request body has been read.
        """

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._end(client_gone())

        loop = asyncio.get_running_loop()
        watching = asyncio.create_task(watch())
        timers = (
            loop.call_later(self._first_token_timeout, self._end_waiting, too_busy(self._first_token_timeout)),
            loop.call_later(self._request_timeout, self._end, took_too_long(self._request_timeout)),
        )
        try:
            yield
        finally:
            watching.cancel()
            for timer in timers:
                timer.cancel()
            self._leave()

    async def deltas(self) -> AsyncGenerator[tuple[int, ChatDelta]]:
        """Pieces of all replies as they come, each with the place of its chat.

        Raises:
            ApiError: a chat failed or was aborted.
        """
        if len(self._chats) == 1:
            async with aclosing(self._chats[0].deltas()) as deltas:
                async for delta in deltas:
                    yield 0, delta
            return
        arrived: asyncio.Queue[tuple[int, ChatDelta] | ApiError | None] = asyncio.Queue()
        readers = [asyncio.create_task(_read(index, chat, arrived)) for index, chat in enumerate(self._chats)]
        running = len(readers)
        try:
            while running:
                item = await arrived.get()
                if isinstance(item, ApiError):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    def _end(self, reason: ApiError) -> None:
        for chat in self._chats:
            chat.end(reason)

    def _end_waiting(self, reason: ApiError) -> None:
        for chat in self._chats:
            chat.end_unless_begun(reason)

    @property
    def usage(self) -> Usage:
        """Usage of all chats, once they have ended: a prompt that several share counts once, as the first read it."""
        usages = [chat.usage for chat in self._chats]
        groups = [usages[first : first + self._choices_each] for first in range(0, len(usages), self._choices_each)]
        return usage_together(group[0].with_completions(group) for group in groups)


async def _read(
    index: int, chat: ServedChat, arrived: "asyncio.Queue[tuple[int, ChatDelta] | ApiError | None]"
) -> None:
    try:
        async for delta in chat.deltas():
            arrived.put_nowait((index, delta))
        arrived.put_nowait(None)
    except ApiError as failure:
        arrived.put_nowait(failure)
    except Exception as fault:  # whoever waits for the next delta must hear of it
        arrived.put_nowait(from_service_error(fault))


def too_busy(seconds: float) -> ApiError:
    """The answer to a chat that has waited too long for its turn."""
    message = f"no first token within {seconds:g} s, the server has too much to do: ask again later, or for less"
    return ApiError(503, message, code="overloaded", headers={"Retry-After": str(RETRY_SECONDS)})


def took_too_long(seconds: float) -> ApiError:
    """The answer to a chat that has taken all its time."""
    return ApiError(504, f"the chat took more than {seconds:g} s: ask for fewer tokens", code="request_timeout")
