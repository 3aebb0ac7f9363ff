"""The body of `/v1/chat/completions`: its shape, and the `ChatRequest` it stands for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agentkv.api import ChatMessage, ChatRequest, Reuse
from agentkv.server.bounded import MOST_TOOLS, Stops, TemplateOptions
from agentkv.server.chat.tools import FormatBody, ToolCallBody, ToolChoiceBody, to_response_format, to_tool_use
from agentkv.server.errors import ApiError
from agentkv.server.fields import CHAT_FIELDS, MESSAGE_FIELDS, STREAM_OPTIONS, StreamOptions
from agentkv.server.sampling_body import SamplingBody
from agentkv.server.text_parts import Text
from agentkv.server.tools import ToolBody

Label = Annotated[str, Field(max_length=256)]


def stop_strings(stop: Any) -> Any:
    """`stop` as a list: null is none, a string is one."""
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else stop


_GivenStops: TypeAlias = Annotated[str, Field(min_length=1)] | Stops | None
StopStrings = BeforeValidator(stop_strings, json_schema_input_type=_GivenStops)


class MessageBody(BaseModel):
    """One message as clients send it."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=MESSAGE_FIELDS.describe)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text = ""
    name: Label | None = None
    tool_calls: Annotated[list[ToolCallBody], Field(fail_fast=True)] | None = None
    tool_call_id: Label | None = None
    reasoning_content: str | None = None

    def to_message(self) -> ChatMessage:
        """The middleware's message; `developer` is what newer clients call `system`."""
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(
            role=role,
            content=self.content,
            name=self.name,
            tool_calls=tuple(call.to_call() for call in self.tool_calls or ()) if role == "assistant" else (),
            tool_call_id=self.tool_call_id if role == "tool" else None,
            reasoning=(self.reasoning_content or "") if role == "assistant" else "",
        )


def to_messages(bodies: Sequence[MessageBody]) -> tuple[ChatMessage, ...]:
    """The middleware's messages.

    Raises:
        ApiError: 400, a field of one that can't be honoured.
    """
    for index, body in enumerate(bodies):
        MESSAGE_FIELDS.check(body.model_extra or {}, f"messages[{index}].")
    return tuple(body.to_message() for body in bodies)


class VendorBody(BaseModel):
    """The vendor field `agentkv`: which kept KV this chat may read, and the rule that repairs it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    reuse: Reuse | None = None
    selector: Annotated[str, Field(max_length=256)] | None = None


class ChatBody(SamplingBody):
    """A chat completion request. Fields beyond these are passed or refused by `CHAT_FIELDS`."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=CHAT_FIELDS.describe)

    model: str
    messages: Annotated[list[MessageBody], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[Stops, StopStrings, Field(default=[])]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    response_format: FormatBody | None = None
    chat_template_kwargs: TemplateOptions | None = None
    cache_salt: Label | None = None
    agent_hint: Label | None = None
    session_id: Label | None = None
    agentkv: VendorBody | None = None

    @property
    def num_choices(self) -> int:
        """How many replies are asked for."""
        return self.n or 1

    def to_requests(self, default_temperature: float) -> list[ChatRequest]:
        """A chat for each choice.

        Raises:
            ApiError: 400, a field that this version can't honour.
        """
        chat = self._to_request(default_temperature)
        return [replace(chat, seed=self.seed_of(choice)) for choice in range(self.num_choices)]

    def _to_request(self, default_temperature: float) -> ChatRequest:
        """The chat that is asked for.

        Raises:
            ApiError: 400, a field that this version can't honour.
        """
        CHAT_FIELDS.check(self.model_extra or {})
        STREAM_OPTIONS.check(self.stream_options or {}, "stream_options.")
        vendor = self.agentkv or VendorBody()
        return ChatRequest(
            messages=to_messages(self.messages),
            tools=to_tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls),
            response_format=to_response_format(self.response_format),
            template_options=self.chat_template_kwargs or {},
            max_tokens=self._max_tokens(),
            temperature=default_temperature if self.temperature is None else self.temperature,
            stop=tuple(self.stop),
            sampling=self.sampling(self._num_logprobs()),
            reuse=vendor.reuse,
            selector=vendor.selector,
            agent=self.agent_hint or None,
            thread=self.session_id or None,
            cache_salt=self.cache_salt or "",
        )

    def _num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            message = f"top_logprobs is {self.top_logprobs}, but logprobs is not true: set it, or leave both out"
            raise ApiError(400, message, param="top_logprobs", code="invalid_value")
        return (self.top_logprobs or 0) if self.logprobs else None

    def _max_tokens(self) -> int | None:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            message = (
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}: they mean "
                "the same, give one"
            )
            raise ApiError(400, message, param="max_tokens", code="invalid_value")
        return self.max_completion_tokens or self.max_tokens
