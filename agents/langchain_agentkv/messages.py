"""LangChain's messages as the middleware's, and its deltas as LangChain's."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGenerationChunk

from agentkv import api
from agentkv.api import ChatDelta, Usage
from agentkv.errors import InvalidRequest


def to_chat_messages(messages: Iterable[BaseMessage]) -> tuple[api.ChatMessage, ...]:
    """The messages of a prompt; `name` says who wrote one and is passed on.

    Raises:
        InvalidRequest: a message that this version can't render: no text, tool calls, an unknown type.
    """
    return tuple(
        api.ChatMessage(role=_role(message, index), content=_text(message, index), name=message.name or None)
        for index, message in enumerate(messages)
    )


def to_chunk(delta: ChatDelta, *, model: str, agent: str | None) -> ChatGenerationChunk:
    """A piece of a reply; the last one carries usage and metadata."""
    message = AIMessageChunk(content=delta.text, name=agent)
    if delta.finish_reason is None:
        return ChatGenerationChunk(message=message)
    message.chunk_position = "last"
    message.response_metadata = {
        "finish_reason": delta.finish_reason,
        "model_name": model,
        "model_provider": "agentkv",
    }
    if agent:
        message.response_metadata["agent"] = agent
    if delta.usage is not None:
        message.response_metadata["agentkv"] = _reuse_metadata(delta.usage)
        message.usage_metadata = _usage_metadata(delta.usage)
    return ChatGenerationChunk(message=message, generation_info={"finish_reason": delta.finish_reason})


def _role(message: BaseMessage, index: int) -> str:
    match message:
        case SystemMessage():
            return "system"
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case ToolMessage():
            return "tool"
        case ChatMessage(role="system" | "user" | "assistant" | "tool" as role):
            return role
        case ChatMessage(role="developer"):
            return "system"
    kind = f"{type(message).__name__} with role {message.role!r}" if isinstance(message, ChatMessage) else message.type
    raise InvalidRequest(
        f"messages[{index}] is a {kind}: give system, human, AI or tool messages", param=f"messages[{index}].role"
    )


def _text(message: BaseMessage, index: int) -> str:
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise InvalidRequest(
            f"messages[{index}] holds tool calls, which this version of agentkv can't render: leave them out",
            param=f"messages[{index}].tool_calls",
        )
    parts = [] if isinstance(message.content, str) else message.content
    for part in parts:
        kind = "text" if isinstance(part, str) else part.get("type")
        if kind != "text":
            raise InvalidRequest(
                f"messages[{index}] has a content part of type {kind!r}: give text parts only",
                param=f"messages[{index}].content",
            )
    return str(message.text)


def _usage_metadata(usage: Usage) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def _reuse_metadata(usage: Usage) -> dict[str, Any]:
    return {**asdict(usage.reuse), "ttft": usage.ttft, "duration": usage.duration}
