"""`/v1/chat/completions`: one reply, or a stream of server-sent events."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from agentkv.server.answers import answers
from agentkv.server.chat.answer import ChatAnswer
from agentkv.server.chat.body import ChatBody
from agentkv.server.chat.reply import Reply
from agentkv.server.event_stream import EventStream
from agentkv.server.openai_events import chunk_events, complete
from agentkv.server.serving import Serving


def chat_routes(serving: Serving) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions", **answers(ChatAnswer, streams=True))
    async def create_chat_completion(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> Response:
        try:
            body = await serving.read(request, ChatBody)
            serving.check_model(body.model)
            chats = await serving.submit(body.to_requests(serving.settings.default_temperature), tenant)
        except Exception as error:
            raise serving.refusal(error) from error
        reply = Reply(body.model, body.num_choices)
        if body.stream:
            openings = [reply.opening(index) for index in range(reply.num_choices)]
            return EventStream(chats, chunk_events(chats, reply, openings))
        return await complete(chats, reply, request.receive)

    return router
