"""Chats that run on behalf of an HTTP client: they end when the client goes, and each is counted once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from starlette.types import Receive

from agentkv.api import ChatDelta, ChatStream, Usage
from agentkv.errors import ServiceClosed
from agentkv.metrics import Metrics
from agentkv.server.errors import ApiError, client_gone, from_service_error


class ServedChat:
    """One chat's stream, with what its last delta said.

    Attributes:
        finish_reason, usage: known once `deltas` is exhausted.
    """

    finish_reason: str
    usage: Usage

    def __init__(self, stream: ChatStream, metrics: Metrics) -> None:
        self._stream = stream
        self._metrics = metrics
        self._gone = False
        self._counted = False

    def hang_up(self) -> None:
        """The client is gone: nobody reads any more."""
        self._gone = True
        self._stream.cancel()

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
                if last.finish_reason is None:
                    yield last
            self.finish_reason, self.usage = self._ending(last)
        except Exception as error:
            failure = from_service_error(error)
            self._count(failure.code or "error")
            raise failure from error
        self._metrics.observe(self.usage)
        self._count(self.finish_reason)
        assert last is not None
        yield last

    def _ending(self, last: ChatDelta | None) -> tuple[str, Usage]:
        if last is None or last.finish_reason is None or last.usage is None:
            raise RuntimeError(f"the service ended a chat without finish reason and usage; its last delta was {last}")
        if last.finish_reason == "abort":
            raise client_gone() if self._gone else ServiceClosed("the server aborted this chat: ask again")
        return last.finish_reason, last.usage

    def _count(self, outcome: str) -> None:
        if not self._counted:
            self._counted = True
            self._metrics.count_request(outcome)


class ServedChats:
    """The chats behind one HTTP request: one for each choice that was asked for."""

    def __init__(self, chats: Sequence[ServedChat]) -> None:
        self._chats = tuple(chats)

    @asynccontextmanager
    async def while_connected(self, receive: Receive) -> AsyncIterator[None]:
        """Cancel the chats as soon as the client hangs up, and in any case at the end of the block.

        Args:
            receive: ASGI's, from which the request body has been read.
        """

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            for chat in self._chats:
                chat.hang_up()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            for chat in self._chats:
                chat.leave()

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

    @property
    def usage(self) -> Usage:
        """Usage of all chats, once they have ended: the prompt, which they share, counts once, as the first read it."""
        first = self._chats[0].usage
        return first.with_completions(chat.usage for chat in self._chats)


async def _read(
    index: int, chat: ServedChat, arrived: "asyncio.Queue[tuple[int, ChatDelta] | ApiError | None]"
) -> None:
    try:
        async for delta in chat.deltas():
            arrived.put_nowait((index, delta))
        arrived.put_nowait(None)
    except ApiError as failure:
        arrived.put_nowait(failure)
