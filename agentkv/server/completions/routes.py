"""`/v1/completions`: the reply, or a stream of server-sent events."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from agentkv.server.answers import answers
from agentkv.server.completions.answer import CompletionAnswer
from agentkv.server.completions.body import CompletionBody
from agentkv.server.completions.reply import CompletionReply
from agentkv.server.event_stream import EventStream
from agentkv.server.openai_events import chunk_events, complete
from agentkv.server.serving import Serving


def completion_routes(serving: Serving) -> APIRouter:
    """The route of text completions."""
    router = APIRouter()

    @router.post("/v1/completions", **answers(CompletionAnswer, streams=True))
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
            return EventStream(chats, chunk_events(chats, reply))
        return await complete(chats, reply, request.receive)

    return router
