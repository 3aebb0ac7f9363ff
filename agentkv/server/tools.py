"""Tools, tool choices and calls as clients send them: what the endpoints' bodies share.

`/v1/chat/completions` wraps a tool in `function`, `/v1/responses` has it flat, `/v1/messages` calls its schema
`input_schema`; all become `agentkv.api.ToolUse`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentkv.api import Tool, ToolUse
from agentkv.server.bounded import MOST_TOOLS
from agentkv.server.errors import ApiError

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Choice = Literal["none", "auto", "required"]


class FunctionBody(BaseModel):
    """A function that may be called."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def to_tool(self) -> Tool:
        """The middleware's tool."""
        return Tool(
            name=self.name,
            description=self.description or "",
            parameters=self.parameters,
            strict=bool(self.strict),
        )


class ToolBody(BaseModel):
    """A tool of chat completions."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function"]
    function: FunctionBody


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str


class NamedTool(BaseModel):
    """One tool by name, as chat completions point at it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(BaseModel):
    """Some of the tools."""

    model_config = ConfigDict(strict=True, extra="ignore")

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(max_length=MOST_TOOLS, fail_fast=True)]


class AllowedToolsChoice(BaseModel):
    """The choice among some of the tools, as chat completions write it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def tool_use(
    tools: Sequence[Tool], choice: Choice | None, only: Sequence[str] = (), *, parallel: bool
) -> ToolUse | None:
    """The tools of a chat; None without any.

    Args:
        tools: as they were given.
        choice: None takes `auto`.
        only: names of those that may be called; none means all.
        parallel: whether several may be called at once.

    Raises:
        ApiError: 400, two tools of one name, or a choice that these tools don't allow.
    """
    names = [tool.name for tool in tools]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise _refused(f"two tools are named {twice[0]!r}: give each its own name", "tools")
    there = set(names)
    if unknown := [name for name in only if name not in there]:
        known = ", ".join(names) or "tools"
        raise _refused(f"tool_choice names {unknown[0]!r}, which is none of the tools: give {known}", "tool_choice")
    if choice == "required" and not tools:
        raise _refused("tool_choice asks for a call, but there are no tools: give tools", "tool_choice")
    if not tools:
        return None
    return ToolUse(tools=tuple(tools), choice=choice or "auto", only=tuple(only), parallel=parallel)


def _refused(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
