"""`/v1/responses`: a response, or a stream of its events; stored ones can be continued, read and deleted."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from agentkv.server.answers import answers
from agentkv.server.errors import ApiError
from agentkv.server.event_stream import EventStream, event
from agentkv.server.responses.answer import DeletedResponse, ResponseAnswer
from agentkv.server.responses.body import ResponseBody
from agentkv.server.responses.reply import ResponseReply
from agentkv.server.responses.store import ResponseStore, StoredResponse
from agentkv.server.served_chat import ServedChats
from agentkv.server.serving import Serving

Done = Callable[[dict[str, Any]], dict[str, Any]]


def response_routes(serving: Serving) -> APIRouter:
    """The routes of responses."""
    router = APIRouter()
    store = ResponseStore(serving.settings.max_stored_bytes_per_key)

    @router.post("/v1/responses", **answers(ResponseAnswer, streams=True))
    async def create_response(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> Response:
        try:
            body = await serving.read(request, ResponseBody)
            serving.check_model(body.model)
            previous = body.previous_response_id
            before = store.get(tenant, previous, "previous_response_id").conversation if previous else ()
            chat = body.to_request(before, serving.settings.default_temperature)
            chats = await serving.submit([chat], tenant)
        except Exception as error:
            raise serving.refusal(error) from error
        reply = ResponseReply(body.model, body.echoed())

        def done(response: dict[str, Any]) -> dict[str, Any]:
            """The response as it is sent: one that is too large to be stored says so."""
            if body.store is False:
                return response
            conversation = (*before, *body.new_messages, reply.message())
            return {**response, "store": store.put(tenant, StoredResponse.of(response, conversation))}

        if body.stream:
            return EventStream(chats, _events(chats, reply, done))
        reason = ""
        async with chats.while_connected(request.receive):
            async for _, delta in chats.deltas():
                _ = list(reply.add(delta))
                reason = delta.finish_reason or reason
        return JSONResponse(done(reply.response(reason, chats.usage)))

    @router.get("/v1/responses/{response_id}", **answers(ResponseAnswer))
    async def retrieve_response(response_id: str, tenant: Annotated[str, Depends(serving.auth)]) -> Response:
        return Response(store.get(tenant, response_id).body, media_type="application/json")

    @router.delete("/v1/responses/{response_id}", **answers(DeletedResponse))
    async def delete_response(response_id: str, tenant: Annotated[str, Depends(serving.auth)]) -> dict[str, Any]:
        store.delete(tenant, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    return router


async def _events(chats: ServedChats, reply: ResponseReply, done: Done) -> AsyncGenerator[bytes]:
    for each in reply.opening():
        yield event(each, each["type"])
    reason = ""
    try:
        async with aclosing(chats.deltas()) as deltas:
            async for _, delta in deltas:
                reason = delta.finish_reason or reason
                for each in reply.add(delta):
                    yield event(each, each["type"])
        last = reply.closing(done(reply.response(reason, chats.usage)))
    except ApiError as error:  # the status line has gone out: the event has to tell it
        last = reply.failure(error)
    for each in last:
        yield event(each, each["type"])
