"""What chat and text completions send, whole or piece by piece: OpenAI's frame around replies of their own."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Protocol

from fastapi.responses import JSONResponse
from starlette.types import Receive

from agentkv.api import ChatDelta, Usage
from agentkv.server.errors import ApiError
from agentkv.server.event_stream import DONE, event
from agentkv.server.served_chat import ServedChats


class OpenAIReply(Protocol):
    """A reply of one or several choices, in the words of its endpoint."""

    def add(self, index: int, delta: ChatDelta) -> None:
        """Take in a piece of one choice, for `completion`."""
        ...

    def completion(self, usage: Usage) -> dict[str, Any]:
        """The whole reply."""
        ...

    def chunks(self, index: int, delta: ChatDelta) -> Iterable[dict[str, Any]]:
        """The events of one piece of a choice."""
        ...

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last event."""
        ...


async def complete(chats: ServedChats, reply: OpenAIReply, receive: Receive) -> JSONResponse:
    """The whole reply, once all chats have ended."""
    async with chats.while_connected(receive):
        async for index, delta in chats.deltas():
            reply.add(index, delta)
    return JSONResponse(reply.completion(chats.usage))


async def chunk_events(
    chats: ServedChats, reply: OpenAIReply, openings: Iterable[dict[str, Any]] = ()
) -> AsyncGenerator[bytes]:
    """Who speaks, where that is said; text and finish reasons; always the usage; `[DONE]`."""
    for opening in openings:
        yield event(opening)
    try:
        async with aclosing(chats.deltas()) as deltas:
            async for index, delta in deltas:
                for chunk in reply.chunks(index, delta):
                    yield event(chunk)
        yield event(reply.usage(chats.usage))
    except ApiError as error:  # the status line has gone out: the event has to tell it
        yield event(error.envelope())
    yield DONE
