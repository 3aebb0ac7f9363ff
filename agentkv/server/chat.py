"""`/v1/chat/completions`: one reply, or a stream of server-sent events.

A stream's headers leave as soon as the service has accepted the chat: what can never run is refused by `submit` and
gets its HTTP status; what fails later comes as an `error` event in the stream. A client that hangs up cancels its chat.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from agentkv.api import ChatService
from agentkv.metrics import Metrics
from agentkv.server.auth import Authenticator
from agentkv.server.body import read_body
from agentkv.server.chat_body import ChatBody
from agentkv.server.errors import ApiError, model_not_found
from agentkv.server.reply import Reply
from agentkv.server.served_chat import ServedChat, refusal
from agentkv.server.settings import ServerSettings


def chat_routes(service: ChatService, settings: ServerSettings, metrics: Metrics, auth: Authenticator) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create_chat_completion(request: Request, tenant: Annotated[str, Depends(auth)]) -> Response:
        try:
            body = await read_body(request, ChatBody, settings.max_body_bytes)
            if body.model != service.model_id:
                raise model_not_found(body.model, service.model_id)
            chat = body.to_request(settings.default_temperature)
            # In a thread: tokenising a long prompt takes a while, and other streams go on meanwhile.
            stream = await asyncio.to_thread(service.submit, chat, tenant=tenant)
        except Exception as error:
            raise refusal(error, metrics) from error
        running = ServedChat(stream, metrics)
        reply = Reply.begin(service.model_id)
        return EventStream(running, reply) if body.stream else await complete(running, reply, request.receive)

    return router


async def complete(chat: ServedChat, reply: Reply, receive: Receive) -> JSONResponse:
    """The whole reply in one answer."""
    async with chat.while_connected(receive):
        text = "".join([piece async for piece in chat.texts()])
    return JSONResponse(reply.completion(text, chat.finish_reason, chat.usage))


class EventStream(Response):
    """The reply as server-sent events: role, text, finish reason, always the usage, `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(self, chat: ServedChat, reply: Reply) -> None:
        self.status_code = 200
        self.background = None
        self._chat = chat
        self._reply = reply
        # x-accel-buffering keeps nginx from holding events back.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the events; whatever ends this call also ends the chat."""
        async with self._chat.while_connected(receive):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._events()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes]:
        yield _event(self._reply.opening())
        try:
            async with aclosing(self._chat.texts()) as texts:
                async for text in texts:
                    yield _event(self._reply.text(text))
            yield _event(self._reply.closing(self._chat.finish_reason))
            yield _event(self._reply.usage(self._chat.usage))
        except ApiError as error:  # the status line has gone out: the event has to tell it
            yield _event(error.envelope())
        yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    # ASCII only: some clients split lines at U+2028 and the like, which JSON may hold raw.
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")
