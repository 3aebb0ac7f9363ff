"""`/v1/messages`: a message, or a stream of its events; and how many tokens a prompt has."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from agentkv.api import ChatDelta
from agentkv.server.answers import CountAnswer, answers
from agentkv.server.errors import ApiError, anthropic_envelope
from agentkv.server.event_stream import EventStream, event
from agentkv.server.hosted import HostedService
from agentkv.server.messages.answer import AnthropicMessage
from agentkv.server.messages.body import AnthropicBody, PromptBody
from agentkv.server.messages.reply import MessageReply
from agentkv.server.served_chat import ServedChats
from agentkv.server.serving import Serving
from agentkv.server.tokens import check_length


def message_routes(serving: Serving, service: HostedService) -> APIRouter:
    """The routes of messages."""
    router = APIRouter()

    @router.post("/v1/messages", **answers(AnthropicMessage, streams=True))
    async def create_message(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> Response:
        try:
            body = await serving.read(request, AnthropicBody)
            serving.check_model(body.model)
            chats = await serving.submit([body.to_request(serving.settings.default_temperature)], tenant)
        except Exception as error:
            raise serving.refusal(error) from error
        reply = MessageReply(body.model, shows_thoughts=body.shows_thoughts)
        if body.stream:
            return EventStream(chats, _events(chats, reply))
        last = ChatDelta()
        async with chats.while_connected(request.receive):
            async for _, last in chats.deltas():
                _ = list(reply.add(last))
        return JSONResponse(reply.message(last, chats.usage))

    @router.post("/v1/messages/count_tokens", **answers(CountAnswer))
    async def count_tokens(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> dict[str, int]:
        try:
            body = await serving.read(request, PromptBody)
            serving.check_model(body.model)
            prompt = body.to_prompt()
            check_length(prompt.messages, serving.settings.max_tokenize_characters)
            count = await asyncio.to_thread(service.count_tokens, prompt, tenant=tenant)
        except Exception as error:
            raise serving.refusal(error) from error
        return {"input_tokens": count}

    return router


async def _events(chats: ServedChats, reply: MessageReply) -> AsyncGenerator[bytes]:
    first = reply.opening()
    yield event(first, first["type"])
    last = ChatDelta()
    try:
        async with aclosing(chats.deltas()) as deltas:
            async for _, last in deltas:
                for each in reply.add(last):
                    yield event(each, each["type"])
        for each in reply.closing(last, chats.usage):
            yield event(each, each["type"])
    except ApiError as error:  # the status line has gone out: the event has to tell it
        yield event(anthropic_envelope(error), "error")
