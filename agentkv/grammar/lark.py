"""Grammars as llguidance's Lark: what a reply may look like.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentkv.api import Tool
from agentkv.dialect import CallShape
from agentkv.grammar.schema import closed

MOST_CALLS = 16
"""Most calls of one reply: a model that would call for ever comes to an end."""

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
    several = f" ({json.dumps(shape.separator)} call){{0,{MOST_CALLS - 1}}}" if parallel else ""
    names = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules = [f"answer: call{several}", f"call: {names}"]
    for index, tool in enumerate(tools):
        before = json.dumps(f"{shape.before}{tool.name}{shape.between}")
        arguments = json_text(tool.arguments_schema)
        rules += [
            f"call_{index}: {before} arguments_{index} {json.dumps(shape.after)}",
            f"arguments_{index}: {arguments}",
        ]
    return "\n".join(rules)


def json_answer(schema: Mapping[str, Any]) -> str:
    """Rules of an answer that is JSON of a schema."""
    return f"answer: {json_text(schema)}"
