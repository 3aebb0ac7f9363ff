"""What `/v1/messages` answers, errors too; built in `agentkv.server.messages.reply`."""

from typing import Any, Literal

from agentkv.server.answers import Answer, ReuseAnswer


class TextBlockAnswer(Answer):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlockAnswer(Answer):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlockAnswer(Answer):
    """A tool that is called."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(Answer):
    """Anthropic's `usage`, and what was reused."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    agentkv: ReuseAnswer


class AnthropicMessage(Answer):
    """A message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlockAnswer | ThinkingBlockAnswer | ToolUseBlockAnswer]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage
