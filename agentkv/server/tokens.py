"""`/tokenize` and `/detokenize`, in vLLM's shape."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from agentkv.api import ChatMessage
from agentkv.server.answers import DetokenizeAnswer, TokenizeAnswer, answers
from agentkv.server.chat.body import MessageBody, to_messages
from agentkv.server.errors import ApiError
from agentkv.server.hosted import HostedService
from agentkv.server.serving import Serving

_ONE_OF_THEM: dict[str, Any] = {
    "oneOf": [
        {"properties": {given: {"not": {"type": "null"}}, other: {"type": "null"}}, "required": [given]}
        for given, other in (("prompt", "messages"), ("messages", "prompt"))
    ]
}


class TokenizeBody(BaseModel):
    """A text, or the messages of a chat. Only what the server does with them is taken: a text gets no special tokens,
    and messages are followed by what asks for a reply."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra=_ONE_OF_THEM)

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, fail_fast=True)] | None = None
    add_special_tokens: Literal[False] | None = None
    add_generation_prompt: Literal[True] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """Token ids."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]


def token_routes(serving: Serving, service: HostedService) -> APIRouter:
    """Both routes. They run no model, but tokenising is work: it counts against a key's limit."""
    router = APIRouter()

    @router.post("/tokenize", **answers(TokenizeAnswer))
    async def tokenize(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> Response:
        body = await serving.read(request, TokenizeBody)
        if body.model is not None:
            serving.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt", code="invalid_value")
        text = (body.prompt or "") if body.messages is None else to_messages(body.messages)
        check_length(text, serving.settings.max_tokenize_characters)

        def answer() -> Response:
            token_ids = service.texts.tokenize(text, tenant=tenant)
            return JSONResponse(
                {
                    "count": len(token_ids),
                    "max_model_len": service.context_length,
                    "tokens": list(token_ids),
                    "token_strs": list(service.texts.names(token_ids)) if body.return_token_strs else None,
                }
            )

        return await asyncio.to_thread(answer)  # with its JSON, which may be large: other streams go on meanwhile

    @router.post("/detokenize", **answers(DetokenizeAnswer))
    async def detokenize(request: Request, _: Annotated[str, Depends(serving.auth)]) -> dict[str, Any]:
        body = await serving.read(request, DetokenizeBody)
        if body.model is not None:
            serving.check_model(body.model)
        if len(body.tokens) > (most := serving.settings.max_tokenize_characters):
            message = f"tokens has {len(body.tokens)} ids, and at most {most} are taken at once: send them in parts"
            raise ApiError(400, message, param="tokens", code="invalid_value")
        return {"prompt": await asyncio.to_thread(service.texts.detokenize, body.tokens)}

    return router


def check_length(text: str | Sequence[ChatMessage], most: int) -> None:
    """Raises ApiError 400 for a text, or messages, of more characters than `most`."""
    count = len(text) if isinstance(text, str) else sum(map(_num_characters, text))
    if count > most:
        message = f"the text has {count} characters, and at most {most} are tokenised at once: send it in parts"
        raise ApiError(400, message, param="prompt" if isinstance(text, str) else "messages", code="invalid_value")


def _num_characters(message: ChatMessage) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning) + calls
