"""Tools and response formats: from what LangChain and OpenAI say to the middleware's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from agentkv.api import ResponseFormat, Tool, ToolUse
from agentkv.errors import InvalidRequest

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool
_CHOICES = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


def openai_tools(tools: Sequence[ToolLike], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, from whatever LangChain takes for one."""
    return [convert_to_openai_tool(tool, strict=strict) for tool in tools]


def openai_tool_choice(choice: Any, names: Sequence[str]) -> Any:
    """`tool_choice` in OpenAI's form; LangChain also says `any`, True, and a tool's bare name.

    Raises:
        InvalidRequest: a choice that is no tool.
    """
    if choice is None or isinstance(choice, dict):
        return choice
    if isinstance(choice, bool):
        return "required" if choice else None
    if choice in names:
        return {"type": "function", "function": {"name": choice}}
    if choice in _CHOICES:
        return _CHOICES[choice]
    known = ", ".join((*_CHOICES, *names))
    raise InvalidRequest(f"tool_choice is {choice!r}: give one of {known}", param="tool_choice")


def tool_use(tools: Any, choice: Any, parallel: bool | None) -> ToolUse | None:
    """The tools of a call, None where there are none.

    Raises:
        InvalidRequest: tools or a choice that can't be used.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest(f"tool_choice is {choice!r}, and there are no tools: bind some", param="tool_choice")
        return None
    parsed = tuple(_tool(tool) for tool in openai_tools(tools))
    names = [tool.name for tool in parsed]
    kind, only = _choice(openai_tool_choice(choice, names), names)
    return ToolUse(tools=parsed, choice=kind, only=only, parallel=parallel is not False and not only)


def response_format(given: Any) -> ResponseFormat | None:
    """What `response_format` in OpenAI's form asks for, None for plain text.

    Raises:
        InvalidRequest: a format that can't be read.
    """
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return ResponseFormat(schema={"type": "object"}, name="json_object")
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema, **more}}:
            return ResponseFormat(schema=schema, name=str(more.get("name", "response_format")))
    raise InvalidRequest(
        f"response_format is {given!r}: give a type text, json_object, or json_schema with a schema",
        param="response_format",
    )


def _tool(tool: dict[str, Any]) -> Tool:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise InvalidRequest(f"tools holds one of type {tool.get('type')!r}: give functions", param="tools")
    return Tool(
        name=function["name"],
        description=function.get("description") or "",
        parameters=function.get("parameters"),
        strict=bool(function.get("strict")),
    )


def _choice(choice: Any, names: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    match choice:
        case None:
            return "auto", ()
        case str():
            return choice, ()
        case {"type": "function", "function": {"name": name}} if name in names:
            return "required", (name,)
    known = ", ".join(names)
    raise InvalidRequest(f"tool_choice is {choice!r}: name one of the tools ({known})", param="tool_choice")
