"""Grammars as llguidance's Lark: what a reply may look like.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentkv.api import Tool
from agentkv.dialect import CallShape
from agentkv.grammar.schema import closed

MOST_CALLS = 16
"""Most calls of one reply: a model that would call for ever comes to an end."""

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_text(schema: Mapping[str, Any]) -> str:
    """The expression for JSON of a schema, in the spacing of `json.dumps`: so models write it, and a client that reads
    and writes it again leaves it as it is. Objects hold what they list (see `closed`)."""
    own = schema.get("x-guidance")
    spaced = {**closed(schema), "x-guidance": {**_SPACING, **(own if isinstance(own, Mapping) else {})}}
    return f"%json {json.dumps(spaced)}"


def reply_grammar(answer: str, *, thinks: bool, opened: bool) -> str:
    """The grammar of a reply: the rules of its answer, behind thoughts where the model may think.

    Args:
        answer: rules, of which one is `answer`.
        thinks: thoughts may come first.
        opened: the prompt has opened them, so that they come first.
    """
    start = "start: answer"
    if thinks:
        start = "start: thoughts answer" if opened else 'start: answer | "<think>" thoughts answer'
        # The shortest text that ends with the tag, then the line breaks before the answer.
        start += '\nthoughts: thought GAP\nthought[suffix="</think>"]: /(?s:.*)/\nGAP: /\\n{0,2}/'
    return f"%llguidance {{}}\n{start}\n{answer}\n"


def calls_answer(tools: Sequence[Tool], shape: CallShape, *, parallel: bool) -> str:
    """Rules of an answer that is one call of these tools, or several."""
    return "\n".join([f"answer: {_calls(shape, parallel=parallel)}", *_call_rules(tools, shape, shape.before)])


def free_answer(tools: Sequence[Tool], shape: CallShape, *, parallel: bool, thinks: bool) -> str:
    """Rules of an answer that is free, but for the calls in it: one that has begun is a call of these tools. The
    arguments of tools that are not `strict` are any object.

    Args:
        tools: what may be called.
        shape: how calls are written.
        parallel: several calls in one reply.
        thinks: leave what begins with thoughts to the rule of thoughts.
    """
    held = [tool if tool.strict else replace(tool, parameters=_ANY_OBJECT) for tool in tools]
    thoughts = " & ~/(?s:<think>.*)/" if thinks else ""
    if not shape.marker:
        words = f"WORDS: /(?s:.*)/ & ~/(?s:\\s*(<\\|python_tag\\|>)?\\s*\\{{.*)/{thoughts}"
        rules = [f"answer: WORDS | {_calls(shape, parallel=parallel)}", words]
        return "\n".join([*rules, *_call_rules(held, shape, shape.before)])
    marker = re.escape(shape.marker)
    rules = [
        f"answer: (opening call){{0,{MOST_CALLS if parallel else 1}}} WORDS",
        f"WORDS: /(?s:.*)/ & ~/(?s:.*{marker}.*)/{thoughts}",
        "opening[lazy]: OPENING",
        f"OPENING: /(?s:.*){marker}/{thoughts}",
    ]
    return "\n".join([*rules, *_call_rules(held, shape, shape.before.removeprefix(shape.marker))])


def _calls(shape: CallShape, *, parallel: bool) -> str:
    return f"call ({json.dumps(shape.separator)} call){{0,{MOST_CALLS - 1}}}" if parallel else "call"


def _call_rules(tools: Sequence[Tool], shape: CallShape, before: str) -> Iterator[str]:
    yield "call: " + " | ".join(f"call_{index}" for index in range(len(tools)))
    for index, tool in enumerate(tools):
        opening = json.dumps(f"{before}{tool.name}{shape.between}")
        yield f"call_{index}: {opening} arguments_{index} {json.dumps(shape.after)}"
        yield f"arguments_{index}: {json_text(tool.arguments_schema)}"


def json_answer(schema: Mapping[str, Any]) -> str:
    """Rules of an answer that is JSON of a schema."""
    return f"answer: {json_text(schema)}"
