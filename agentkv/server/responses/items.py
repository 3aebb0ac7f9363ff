"""Items of the Responses API, in and out, as messages of a chat.

A reply is several items there (thoughts, a message, calls) and one assistant's message here; so items of one reply that
come back become one message again, and its words are recognised.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from agentkv.api import ChatMessage, ToolCall
from agentkv.server.text_parts import join_parts


class ItemPart(BaseModel):
    """A part of text, given or said before."""

    type: Literal["input_text", "output_text", "text"]
    text: str


def _text(value: Any) -> Any:
    return join_parts(value, kinds=("input_text", "output_text", "text"))


Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | list[ItemPart] | None)]


class MessageItem(BaseModel):
    """What somebody said."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class CallItem(BaseModel):
    """A tool that was called."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class OutputItem(BaseModel):
    """What it answered."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function_call_output"]
    call_id: str
    output: Text


class ReasoningItem(BaseModel):
    """What the model thought."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["reasoning"]
    content: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(str(part.get("text", "")) for part in self.content or ())


def _kind(value: Any) -> str:
    """Which item it is; a message may leave its type out."""
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", "message")
    return kind if isinstance(kind, str) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


def to_messages(items: Iterable[MessageItem | CallItem | OutputItem | ReasoningItem]) -> tuple[ChatMessage, ...]:
    """The messages that items stand for."""
    messages: list[ChatMessage] = []
    thought = ""
    for item in items:
        match item:
            case ReasoningItem():
                thought += item.text
            case MessageItem(role="assistant"):
                messages.append(ChatMessage(role="assistant", content=item.content, reasoning=thought))
                thought = ""
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                messages.append(ChatMessage(role=role, content=item.content))
            case CallItem():
                call = ToolCall(call_id=item.call_id, name=item.name, arguments=item.arguments)
                if messages and messages[-1].role == "assistant":
                    messages[-1] = replace(messages[-1], tool_calls=(*messages[-1].tool_calls, call))
                else:
                    called = ChatMessage(role="assistant", content="", tool_calls=(call,), reasoning=thought)
                    messages.append(called)
                thought = ""
            case OutputItem():
                messages.append(ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id))
    return tuple(messages)


def with_instructions(messages: Sequence[ChatMessage], instructions: str | None) -> tuple[ChatMessage, ...]:
    """The messages behind the instructions of this one response."""
    return (ChatMessage(role="system", content=instructions), *messages) if instructions else tuple(messages)
