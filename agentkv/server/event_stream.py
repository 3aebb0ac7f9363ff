"""Server-sent events: the one writer of every endpoint that streams.

A stream's headers leave as soon as the service has accepted the chat: what can never run is refused by `submit` and
gets its HTTP status; what fails later has to be an event. A client that hangs up cancels its chat.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from agentkv.server.served_chat import ServedChats

DONE = b"data: [DONE]\n\n"
"""What OpenAI's streams end with."""

_ASIDE_SECONDS = 3e-3
"""How long a stream's headers wait: the engine's thread takes the chat up meanwhile, and has the interpreter to
itself. Hardly a first token is there sooner."""


class EventStream(Response):
    """Sends the events of a reply while its chats run.

    Args:
        chats: cancelled when the client hangs up, and in any case at the end.
        events: what goes over the wire; it turns the chats' failures into events.
    """

    media_type = "text/event-stream"

    def __init__(self, chats: ServedChats, events: AsyncGenerator[bytes]) -> None:
        self.status_code = 200
        self.background = None
        self._chats = chats
        self._events = events
        # x-accel-buffering keeps nginx from holding events back.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the events; whatever ends this call also ends the chats."""
        async with self._chats.while_connected(receive):
            await asyncio.sleep(_ASIDE_SECONDS)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event, with its name where the protocol has one."""
    # ASCII only: some clients split lines at U+2028 and the like, which JSON may hold raw.
    line = f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
    return (f"event: {name}\n{line}" if name else line).encode("ascii")
