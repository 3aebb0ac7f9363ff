"""A chat that runs on behalf of an HTTP client: it ends when the client goes, and is counted once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from agentkv.api import ChatDelta, ChatStream, Usage
from agentkv.errors import ServiceClosed
from agentkv.metrics import Metrics
from agentkv.server.errors import ApiError, client_gone, from_service_error


class ServedChat:
    """One chat's stream, with what its last delta said.

    Attributes:
        finish_reason, usage: known once `texts` is exhausted.
    """

    finish_reason: str
    usage: Usage

    def __init__(self, stream: ChatStream, metrics: Metrics) -> None:
        self._stream = stream
        self._metrics = metrics
        self._gone = False
        self._counted = False

    @asynccontextmanager
    async def while_connected(self, receive: Receive) -> AsyncIterator[None]:
        """Cancel the chat as soon as the client hangs up, and in any case at the end of the block.

        Args:
            receive: ASGI's, from which the request body has been read.
        """

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            self._stream.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            self._stream.cancel()
            self._count("client_closed_request")  # unless it has been counted: this block was left before the end

    async def texts(self) -> AsyncGenerator[str]:
        """Pieces of the reply, none empty.

        Raises:
            ApiError: the chat failed or was aborted.
        """
        last: ChatDelta | None = None
        try:
            async for last in self._stream:
                if last.text:
                    yield last.text
            self.finish_reason, self.usage = self._ending(last)
        except Exception as error:
            failure = from_service_error(error)
            self._count(failure.code or "error")
            raise failure from error
        self._metrics.observe(self.usage)
        self._count(self.finish_reason)

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


def refusal(error: Exception, metrics: Metrics) -> ApiError:
    """The answer to a chat that never ran, counted."""
    failure = from_service_error(error)
    metrics.count_request(failure.code or str(failure.status))
    return failure
