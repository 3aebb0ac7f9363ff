"""The body of `/v1/messages`: its shape, and the `ChatRequest` it stands for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agentkv.api import ChatMessage, ChatRequest, Tool, ToolCall, ToolUse
from agentkv.sampling import Sampling
from agentkv.server.bounded import MOST_TOOLS, Stops
from agentkv.server.chat.body import Label, VendorBody
from agentkv.server.fields import ANTHROPIC_FIELDS
from agentkv.server.text_parts import Text
from agentkv.server.tools import ToolName, tool_use


class TextBlock(BaseModel):
    """Text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: str


class ThinkingBlock(BaseModel):
    """What the model thought."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["thinking"]
    thinking: str = ""


class ToolUseBlock(BaseModel):
    """A tool that was called."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] = {}


class ToolResultBlock(BaseModel):
    """What it answered."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["tool_result"]
    tool_use_id: str
    content: Text = ""


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


def _blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class MessageBody(BaseModel):
    """One turn; a user's may answer tools, an assistant's may call them."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block], Field(fail_fast=True), BeforeValidator(_blocks, json_schema_input_type=str | list[Block])
    ]

    def to_messages(self) -> Iterator[ChatMessage]:
        """The middleware's messages: what tools answered stands for itself."""
        if self.role == "assistant":
            calls = tuple(
                ToolCall(call_id=b.id, name=b.name, arguments=json.dumps(b.input, ensure_ascii=False))
                for b in self.content
                if isinstance(b, ToolUseBlock)
            )
            thought = "".join(b.thinking for b in self.content if isinstance(b, ThinkingBlock))
            yield ChatMessage(role="assistant", content=self._text, tool_calls=calls, reasoning=thought)
            return
        for block in self.content:
            if isinstance(block, ToolResultBlock):
                yield ChatMessage(role="tool", content=block.content, tool_call_id=block.tool_use_id)
        if self._text or not any(isinstance(block, ToolResultBlock) for block in self.content):
            yield ChatMessage(role=self.role, content=self._text)

    @property
    def _text(self) -> str:
        return "".join(block.text for block in self.content if isinstance(block, TextBlock))


class AnthropicTool(BaseModel):
    """A tool; only those that the client runs can be called here."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def to_tool(self) -> Tool:
        """The middleware's tool."""
        return Tool(
            name=self.name,
            description=self.description or "",
            parameters=self.input_schema,
            strict=bool(self.strict),
        )


class ToolChoiceBody(BaseModel):
    """Whether a tool has to be called."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingBody(BaseModel):
    """Whether the model's thoughts are wanted."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["enabled", "disabled", "adaptive"]


class PromptBody(BaseModel):
    """What a prompt is made of: all that is needed to count its tokens."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=ANTHROPIC_FIELDS.describe)

    model: str
    messages: Annotated[list[MessageBody], Field(min_length=1, fail_fast=True)]
    system: Text = ""
    tools: Annotated[list[AnthropicTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    cache_salt: Label | None = None

    def to_prompt(self) -> ChatRequest:
        """The chat, as far as its prompt goes.

        Raises:
            ApiError: 400, a field that can't be honoured.
        """
        ANTHROPIC_FIELDS.check(self.model_extra or {})
        messages = [message for body in self.messages for message in body.to_messages()]
        if self.system:
            messages.insert(0, ChatMessage(role="system", content=self.system))
        return ChatRequest(
            messages=tuple(messages),
            tools=self._tool_use(),
            template_options=self._options(),
            cache_salt=self.cache_salt or "",
        )

    def _tool_use(self) -> ToolUse | None:
        tools = [tool.to_tool() for tool in self.tools or ()]
        choice = self.tool_choice or ToolChoiceBody(type="auto")
        several = not choice.disable_parallel_tool_use
        match choice.type:
            case "tool":
                return tool_use(tools, "required", [choice.name or ""], parallel=False)
            case "any":
                return tool_use(tools, "required", parallel=several)
            case "auto" | "none" as mode:
                return tool_use(tools, mode, parallel=several)

    def _options(self) -> dict[str, Any]:
        """Templates that can switch thoughts off have one name for it."""
        return {"enable_thinking": False} if self.thinking and self.thinking.type == "disabled" else {}


class AnthropicBody(PromptBody):
    """A request for a message. Fields beyond these are passed or refused by `ANTHROPIC_FIELDS`."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    stream: bool | None = None
    agent_hint: Label | None = None
    agentkv: VendorBody | None = None

    @property
    def shows_thoughts(self) -> bool:
        """Whether thoughts are given out as blocks."""
        return self.thinking is not None and self.thinking.type != "disabled"

    def to_request(self, default_temperature: float) -> ChatRequest:
        """The chat that is asked for. Raises what `to_prompt` raises."""
        vendor = self.agentkv or VendorBody()
        top_p = 1.0 if self.top_p is None else self.top_p
        return replace(
            self.to_prompt(),
            max_tokens=self.max_tokens,
            temperature=default_temperature if self.temperature is None else self.temperature,
            sampling=Sampling(top_p=top_p, top_k=max(self.top_k or 0, 0)),
            stop=tuple(self.stop_sequences or ()),
            reuse=vendor.reuse,
            selector=vendor.selector,
            agent=self.agent_hint or None,
        )
