"""The body of `/v1/responses`: its shape, and the `ChatRequest` it stands for."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agentkv.api import ChatMessage, ChatRequest, ResponseFormat, ToolUse
from agentkv.sampling import Sampling
from agentkv.server.bounded import MOST_TOOLS, Metadata, TemplateOptions
from agentkv.server.chat.body import Label, VendorBody
from agentkv.server.chat.tools import any_object
from agentkv.server.fields import RESPONSE_FIELDS
from agentkv.server.responses.items import Item, to_messages, with_instructions
from agentkv.server.tools import Choice, FunctionBody, NamedFunction, tool_use


class ResponseTool(FunctionBody):
    """A tool, flat; only functions can be called here."""

    type: Literal["function"]


class NamedChoice(NamedFunction):
    """One tool by name."""

    type: Literal["function"]


class AllowedChoice(BaseModel):
    """The choice among some of the tools."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(max_length=MOST_TOOLS, fail_fast=True)]


class PlainFormat(BaseModel):
    """Any text, or any JSON object."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text", "json_object"]


class SchemaFormat(BaseModel):
    """JSON of a schema, flat."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    type: Literal["json_schema"]
    name: Annotated[str, Field(max_length=256)] = "text.format"
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class TextBody(BaseModel):
    """How the text is to look."""

    model_config = ConfigDict(strict=True, extra="ignore")

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None


def _items(value: Any) -> Any:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


class ResponseBody(BaseModel):
    """A request for a response. Fields beyond these are passed or refused by `RESPONSE_FIELDS`."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=RESPONSE_FIELDS.describe)

    model: str
    input: Annotated[
        list[Item], Field(fail_fast=True), BeforeValidator(_items, json_schema_input_type=str | list[Item])
    ]
    instructions: str | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Choice | NamedChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: Metadata | None = None
    chat_template_kwargs: TemplateOptions | None = None
    cache_salt: Label | None = None
    agent_hint: Label | None = None
    agentkv: VendorBody | None = None

    @property
    def new_messages(self) -> tuple[ChatMessage, ...]:
        """What the input says."""
        return to_messages(self.input)

    def to_request(self, before: Sequence[ChatMessage], default_temperature: float) -> ChatRequest:
        """The chat that is asked for.

        Args:
            before: the conversation that the previous response has left.
            default_temperature: for requests that give none.

        Raises:
            ApiError: 400, a field that can't be honoured.
        """
        RESPONSE_FIELDS.check(self.model_extra or {})
        vendor = self.agentkv or VendorBody()
        return ChatRequest(
            messages=with_instructions((*before, *self.new_messages), self.instructions),
            tools=self._tool_use(),
            response_format=self._format(),
            template_options=self.chat_template_kwargs or {},
            max_tokens=self.max_output_tokens,
            temperature=default_temperature if self.temperature is None else self.temperature,
            sampling=Sampling(top_p=1.0 if self.top_p is None else self.top_p),
            seed=self.seed,
            reuse=vendor.reuse,
            selector=vendor.selector,
            agent=self.agent_hint or None,
            cache_salt=self.cache_salt or "",
        )

    def echoed(self) -> Mapping[str, Any]:
        """The fields of the request that a response repeats."""
        wanted = self.model_dump(mode="json", by_alias=True, include={"tools", "tool_choice", "text", "metadata"})
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": wanted["metadata"] or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": self.store is not False,
            "temperature": self.temperature,
            "text": {"format": (wanted["text"] or {}).get("format") or {"type": "text"}},
            "tool_choice": wanted["tool_choice"] or "auto",
            "tools": wanted["tools"] or [],
            "top_p": self.top_p,
            "truncation": "disabled",
        }

    def _tool_use(self) -> ToolUse | None:
        tools = [tool.to_tool() for tool in self.tools or ()]
        several = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedChoice():
                return tool_use(tools, "required", [self.tool_choice.name], parallel=False)
            case AllowedChoice(mode=mode, tools=allowed):
                return tool_use(tools, mode, [tool.name for tool in allowed], parallel=several)
            case choice:
                return tool_use(tools, choice, parallel=several)

    def _format(self) -> ResponseFormat | None:
        match self.text.format if self.text else None:
            case SchemaFormat() as wanted:
                return ResponseFormat(schema=wanted.schema_, name=wanted.name)
            case PlainFormat(type="json_object"):
                return any_object()
            case _:
                return None
