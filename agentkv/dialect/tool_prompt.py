"""How a model is told of its tools: as its template writes them, or else in words, in the system prompt."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentkv.api import ChatMessage, Tool
from agentkv.dialect.tool_dialect import ToolDialect


def tool_definitions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as OpenAI's API has them, which is also what chat templates read."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.arguments_schema),
            },
        }
        for tool in tools
    ]


def with_tools_in_words(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], dialect: ToolDialect
) -> tuple[ChatMessage, ...]:
    """The messages with the tools at the end of the system prompt, in the words of Qwen2.5's template."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tool_definitions(tools))
    words = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{listed}\n</tools>\n\n{dialect.instruction}"
    )
    if messages and messages[0].role == "system":
        first = replace(messages[0], content=f"{messages[0].content}\n\n{words}" if messages[0].content else words)
        return (first, *messages[1:])
    return (ChatMessage(role="system", content=words), *messages)
