"""`/v1/agentkv/segments` and `/v1/agentkv/stats`. A key sees and touches its own segments only."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from agentkv.api import ChatRequest, Reuse
from agentkv.segment_api import SegmentInfo, SegmentManager
from agentkv.server.answers import answers
from agentkv.server.chat.body import Label, MessageBody, to_messages
from agentkv.server.errors import ApiError
from agentkv.server.hosted import HostedService
from agentkv.server.query import only_known_parameters
from agentkv.server.segments.answer import (
    DeletedAnswer,
    PinnedAnswer,
    SegmentsAnswer,
    StatsAnswer,
    UnpinnedAnswer,
    WarmAnswer,
)
from agentkv.server.serving import Serving
from agentkv.wire import usage_object

Seconds = Annotated[float, Query(ge=0, allow_inf_nan=False)]


class WarmBody(BaseModel):
    """Messages to prefill ahead, as the chat that is going to read them will send them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, fail_fast=True)]
    agent_hint: Label | None = None
    session_id: Label | None = None
    cache_salt: Label | None = None
    pin: bool = False


def segment_routes(serving: Serving, service: HostedService) -> APIRouter:
    """The routes of kept segments and of statistics."""
    router = APIRouter(prefix="/v1/agentkv", dependencies=[Depends(only_known_parameters)])
    caller = serving.auth.caller

    @router.get("/segments", **answers(SegmentsAnswer))
    async def list_segments(tenant: Annotated[str, Depends(caller)]) -> dict[str, Any]:
        listed = await asyncio.to_thread(service.segments.list, tenant=tenant)
        return {"object": "list", "data": [{"object": "segment", **asdict(info)} for info in listed]}

    @router.delete("/segments", **answers(DeletedAnswer))
    async def delete_segments(
        tenant: Annotated[str, Depends(caller)],
        thread: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
        older_than: Seconds | None = None,
        all: bool = False,
    ) -> dict[str, int]:
        which = {"thread": thread, "older_than": older_than, "all": all}
        deleted = await asyncio.to_thread(service.segments.delete, **which, tenant=tenant)
        return {"deleted": deleted}

    @router.delete("/segments/{segment_id}", **answers(DeletedAnswer))
    async def delete_segment(segment_id: str, tenant: Annotated[str, Depends(caller)]) -> dict[str, int]:
        deleted = await asyncio.to_thread(service.segments.delete, segment_id=segment_id, tenant=tenant)
        if not deleted:
            message = f"no segment {segment_id!r} is kept: list what is"
            raise ApiError(404, message, param="segment", code="segment_not_found")
        return {"deleted": deleted}

    @router.post("/segments/{segment_id}/pin", **answers(PinnedAnswer))
    async def pin_segment(segment_id: str, tenant: Annotated[str, Depends(caller)]) -> dict[str, bool]:
        await asyncio.to_thread(service.segments.pin, segment_id, tenant=tenant)
        return {"pinned": True}

    @router.post("/segments/{segment_id}/unpin", **answers(UnpinnedAnswer))
    async def unpin_segment(segment_id: str, tenant: Annotated[str, Depends(caller)]) -> dict[str, bool]:
        unpinned = await asyncio.to_thread(service.segments.unpin, segment_id, tenant=tenant)
        return {"pinned": False, "unpinned": unpinned}

    @router.post("/segments/warm", **answers(WarmAnswer))
    async def warm(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> dict[str, Any]:
        body = await serving.read(request, WarmBody)
        if body.model is not None:
            serving.check_model(body.model)
        chats = await serving.submit([_reading(body)], tenant)
        async with chats.while_connected(request.receive):
            async for _ in chats.deltas():
                pass
        read = tuple(message.content.strip() for message in body.messages)
        listed = await asyncio.to_thread(service.segments.list, tenant=tenant)
        found = [info for info in listed if any(text.startswith(info.text.strip()) for text in read)]
        if body.pin:
            await asyncio.to_thread(_pin_all, service.segments, found, tenant)
        return {"segments": [info.segment_id for info in found], "usage": usage_object(chats.usage)}

    @router.get("/stats", **answers(StatsAnswer))
    async def stats(tenant: Annotated[str, Depends(caller)]) -> dict[str, Any]:
        listed = await asyncio.to_thread(service.segments.list, tenant=tenant)
        return {
            "agents": serving.statistics.of(tenant),
            "segments": len(listed),
            "tokens": sum(info.tokens for info in listed),
            "num_bytes": sum(info.num_bytes for info in listed),
            "pinned_bytes": sum(info.num_bytes for info in listed if info.pinned),
        }

    return router


def _pin_all(segments: SegmentManager, infos: Sequence[SegmentInfo], tenant: str) -> None:
    """Pin all or, where one can't be pinned, none that was not pinned before."""
    with ExitStack() as undo:
        for info in infos:
            segments.pin(info.segment_id, tenant=tenant)
            if not info.pinned:
                undo.callback(segments.unpin, info.segment_id, tenant=tenant)
        undo.pop_all()


def _reading(body: WarmBody) -> ChatRequest:
    """A chat whose prompt is kept; it generates the one token without which a prompt is not done."""
    return ChatRequest(
        messages=to_messages(body.messages),
        max_tokens=1,
        reuse=Reuse.SCREENED,
        agent=body.agent_hint or None,
        thread=body.session_id or None,
        cache_salt=body.cache_salt or "",
    )
