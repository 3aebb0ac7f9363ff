"""LangChain's messages as the middleware's."""

import json
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from agentkv import api
from agentkv.errors import InvalidRequest

# Parts of an AI message that stand in its `tool_calls` as well.
_CALL_PARTS = frozenset({"function_call", "invalid_tool_call", "tool_call", "tool_call_chunk", "tool_use"})
# What a reasoning model thought, and where it says so.
_THOUGHTS = {"reasoning": "reasoning", "redacted_thinking": "", "thinking": "thinking"}


def to_chat_messages(messages: Iterable[BaseMessage]) -> tuple[api.ChatMessage, ...]:
    """The messages of a prompt; `name` says who wrote one and is passed on.

    Raises:
        InvalidRequest: a message that can't be read: a part that is no text, an unknown type.
    """
    return tuple(_to_chat_message(message, index) for index, message in enumerate(messages))


def _to_chat_message(message: BaseMessage, index: int) -> api.ChatMessage:
    role, name = _role(message, index), message.name or None
    _check_parts(message, index)
    content = str(message.text)
    match message:
        case AIMessage():
            return api.ChatMessage(
                role=role, content=content, name=name, tool_calls=_tool_calls(message), reasoning=_reasoning(message)
            )
        case ToolMessage():
            return api.ChatMessage(role=role, content=content, name=name, tool_call_id=message.tool_call_id)
    return api.ChatMessage(role=role, content=content, name=name)


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


def _check_parts(message: BaseMessage, index: int) -> None:
    known = {"text", *_CALL_PARTS, *_THOUGHTS} if isinstance(message, AIMessage) else {"text"}
    for part in _parts(message):
        if part.get("type") not in known:
            raise InvalidRequest(
                f"messages[{index}] has a content part of type {part.get('type')!r}: give text parts only",
                param=f"messages[{index}].content",
            )


def _parts(message: BaseMessage) -> list[dict[str, Any]]:
    """The parts of a content that is a list, strings left out."""
    return [] if isinstance(message.content, str) else [part for part in message.content if isinstance(part, dict)]


def _tool_calls(message: AIMessage) -> tuple[api.ToolCall, ...]:
    """The calls; one whose arguments were no JSON goes back as it came."""
    good = [(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls]
    bad = [(call["id"], call["name"] or "", call["args"] or "") for call in message.invalid_tool_calls]
    return tuple(
        api.ToolCall(call_id=call_id or f"call_{index}", name=name, arguments=arguments)
        for index, (call_id, name, arguments) in enumerate(good + bad)
    )


def _reasoning(message: AIMessage) -> str:
    said = message.additional_kwargs.get("reasoning_content")
    if isinstance(said, str):
        return said
    return "".join(str(part.get(_THOUGHTS[part["type"]], "")) for part in _parts(message) if part["type"] in _THOUGHTS)
