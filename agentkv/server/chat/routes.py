"""`/v1/chat/completions`: one reply, or a stream of server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive

from agentkv.server.chat.body import ChatBody
from agentkv.server.chat.reply import Reply
from agentkv.server.errors import ApiError
from agentkv.server.event_stream import DONE, EventStream, event
from agentkv.server.served_chat import ServedChats
from agentkv.server.serving import Serving


def chat_routes(serving: Serving) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses={200: {"content": {"text/event-stream": {}}}})
    async def create_chat_completion(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> Response:
        try:
            body = await serving.read(request, ChatBody)
            serving.check_model(body.model)
            chats = await serving.submit(body.to_requests(serving.settings.default_temperature), tenant)
        except Exception as error:
            raise serving.refusal(error) from error
        reply = Reply(body.model, body.num_choices)
        if body.stream:
            return EventStream(chats, _events(chats, reply))
        return await _complete(chats, reply, request.receive)

    return router


async def _complete(chats: ServedChats, reply: Reply, receive: Receive) -> JSONResponse:
    async with chats.while_connected(receive):
        async for index, delta in chats.deltas():
            reply.add(index, delta)
    return JSONResponse(reply.completion(chats.usage))


async def _events(chats: ServedChats, reply: Reply) -> AsyncGenerator[bytes]:
    """Who speaks, text, finish reason, always the usage, `[DONE]`."""
    for index in range(reply.num_choices):
        yield event(reply.opening(index))
    try:
        async with aclosing(chats.deltas()) as deltas:
            async for index, delta in deltas:
                for chunk in reply.chunks(index, delta):
                    yield event(chunk)
        yield event(reply.usage(chats.usage))
    except ApiError as error:  # the status line has gone out: the event has to tell it
        yield event(error.envelope())
    yield DONE
