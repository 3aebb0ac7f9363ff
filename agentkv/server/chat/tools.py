"""The fields of chat completions that have to do with tools and formats, as the middleware has them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agentkv.api import ResponseFormat, ToolCall, ToolUse
from agentkv.server.tools import AllowedToolsChoice, Choice, NamedTool, ToolBody, tool_use

ToolChoiceBody = Choice | NamedTool | AllowedToolsChoice


def _or_empty(arguments: Any) -> Any:
    return "{}" if arguments is None or arguments == "" else arguments


class CalledFunction(BaseModel):
    """The function of a call."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str
    arguments: Annotated[str, BeforeValidator(_or_empty, json_schema_input_type=str | None)] = "{}"


class ToolCallBody(BaseModel):
    """A call in an assistant's message."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    def to_call(self) -> ToolCall:
        """The middleware's call."""
        return ToolCall(call_id=self.id, name=self.function.name, arguments=self.function.arguments)


class JsonSchemaBody(BaseModel):
    """A named JSON schema. It is held to whether `strict` or not."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    name: Annotated[str, Field(max_length=256)] = "response_format"
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}


class TextFormat(BaseModel):
    """Any text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["json_object"]


class JsonSchemaFormat(BaseModel):
    """JSON of a schema."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["json_schema"]
    json_schema: JsonSchemaBody


FormatBody = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def to_tool_use(
    tools: list[ToolBody] | None, choice: ToolChoiceBody | None, *, parallel: bool | None
) -> ToolUse | None:
    """Tools and choice of a chat; see `tool_use`."""
    known = [tool.function.to_tool() for tool in tools or ()]
    several = parallel is not False
    match choice:
        case NamedTool():
            return tool_use(known, "required", [choice.function.name], parallel=False)
        case AllowedToolsChoice(allowed_tools=allowed):
            return tool_use(known, allowed.mode, [tool.function.name for tool in allowed.tools], parallel=several)
        case _:
            return tool_use(known, choice, parallel=several)


def to_response_format(body: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> ResponseFormat | None:
    """The format that a reply is held to; None for plain text."""
    match body:
        case JsonObjectFormat():
            return any_object()
        case JsonSchemaFormat(json_schema=named):
            return ResponseFormat(schema=named.schema_, name=named.name)
        case _:
            return None


def any_object() -> ResponseFormat:
    """The format of `json_object`."""
    schema: Mapping[str, Any] = {"type": "object"}
    return ResponseFormat(schema=schema, name="json_object")
