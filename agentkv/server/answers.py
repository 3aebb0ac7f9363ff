"""What the routes answer, as `/openapi.json` tells it: what all families share, and the small answers.

Replies are built as plain data, piece by piece; these models describe them, and tests hold one to the other.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from agentkv.api import ReuseUsage

CLOSED = ConfigDict(extra="forbid")
"""Of answers: nothing but what is named."""


class Answer(BaseModel):
    """A part of an answer."""

    model_config = CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseAnswer(ReuseUsage):
    """Where a prompt's tokens came from, and when; see docs/server.md."""

    __pydantic_config__ = CLOSED

    queue: float | None
    ttft: float | None
    duration: float | None


class CachedTokens(Answer):
    """Tokens that were not computed."""

    cached_tokens: int


class ReasoningTokens(Answer):
    """Tokens that the model thought with."""

    reasoning_tokens: int


class UsageAnswer(Answer):
    """OpenAI's `usage`, and what was reused."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens
    agentkv: ReuseAnswer


class TokenAnswer(Answer):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobAnswer(TokenAnswer):
    """One with the likeliest tokens at its place."""

    top_logprobs: list[TokenAnswer]


class ModelAnswer(Answer):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelsAnswer(Answer):
    """All of them."""

    object: Literal["list"]
    data: list[ModelAnswer]


class StatusAnswer(Answer):
    """How the server does."""

    status: str


class VersionAnswer(Answer):
    """Which one it is."""

    version: str


class TokenizeAnswer(Answer):
    """Tokens of a text or a chat."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Answer):
    """Text of tokens."""

    prompt: str


class CountAnswer(Answer):
    """Tokens of a prompt."""

    input_tokens: int


_EVENT = {
    "type": "object",
    "description": "Server-sent events, where `stream` is true: JSON in `data`, at the end perhaps `[DONE]`.",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
    "required": ["data"],
}


def answers(model: type[BaseModel] | None, *, streams: bool = False) -> dict[str, Any]:
    """Arguments of a route's decorator: what its success looks like. FastAPI does not look at the answers themselves.

    Args:
        model: of the JSON; None where it is no JSON.
        streams: it may be a stream of server-sent events instead.
    """
    success: dict[str, Any] = {"description": "Success."}
    if model is not None:
        success["model"] = model
    if streams:
        success["content"] = {"text/event-stream": {"schema": _EVENT}}
    return {"response_model": None, "responses": {200: success}}
