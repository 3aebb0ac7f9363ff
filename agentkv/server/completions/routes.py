"""`/v1/completions`: the reply, or a stream of server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from agentkv.server.completions.body import CompletionBody
from agentkv.server.completions.reply import CompletionReply
from agentkv.server.errors import ApiError
from agentkv.server.event_stream import DONE, EventStream, event
from agentkv.server.served_chat import ServedChats
from agentkv.server.serving import Serving


def completion_routes(serving: Serving) -> APIRouter:
    """The route of text completions."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def create_completion(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> Response:
        try:
            body = await serving.read(request, CompletionBody)
            serving.check_model(body.model)
            requests = body.to_requests(serving.settings.default_temperature)
            chats = await serving.submit(requests, tenant, choices_each=body.num_choices)
        except Exception as error:
            raise serving.refusal(error) from error
        reply = CompletionReply(
            body.model,
            len(requests),
            with_logprobs=body.logprobs is not None,
            with_output=not body.is_score_only,
        )
        if body.stream:
            return EventStream(chats, _events(chats, reply))
        async with chats.while_connected(request.receive):
            async for index, delta in chats.deltas():
                reply.add(index, delta)
        return JSONResponse(reply.completion(chats.usage))

    return router


async def _events(chats: ServedChats, reply: CompletionReply) -> AsyncGenerator[bytes]:
    """Text, finish reason, always the usage, `[DONE]`."""
    try:
        async with aclosing(chats.deltas()) as deltas:
            async for index, delta in deltas:
                for chunk in reply.chunks(index, delta):
                    yield event(chunk)
        yield event(reply.usage(chats.usage))
    except ApiError as error:
        yield event(error.envelope())
    yield DONE
