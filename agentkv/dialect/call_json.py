"""Reads a call written as one JSON object, streaming its arguments as they come.

    {"name": "search", "arguments": {"query": "tides"}}

Models write the name first, as a rule; then the arguments stream. Any other order is read once the object is complete.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from agentkv.api import ToolCallDelta

_ARGUMENTS = r'"(?:arguments|parameters)"\s*:\s*'
_HEADER = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*' + _ARGUMENTS + r"(?=\{)"
)


class ObjectScanner:
    """Finds the end of a JSON object in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def scan(self, text: str, start: int = 0) -> int | None:
        """Where the object ends in this piece (behind its brace), or None where it goes on."""
        for place in range(start, len(text)):
            character = text[place]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + 1
        return None


class CallObject:
    """One call's object, from its brace on.

    Args:
        index: which of the reply's calls it would be.

    Attributes:
        text: all of it so far.
        named: whether it is known to be a call: pieces of it have been given out.
        complete: the object has been closed.
    """

    def __init__(self, index: int) -> None:
        self.text = ""
        self.named = False
        self.complete = False
        self._index = index
        self._whole = ObjectScanner()
        self._arguments: ObjectScanner | None = None
        self._arguments_end = False

    def feed(self, text: str) -> tuple[list[ToolCallDelta], str]:
        """Pieces of the call, and the text behind its end."""
        end = self._whole.scan(text)
        mine, rest = (text, "") if end is None else (text[:end], text[end:])
        self.text += mine
        self.complete = end is not None
        return list(self._pieces(mine)), rest

    def _pieces(self, new: str) -> Iterator[ToolCallDelta]:
        if self._arguments is not None:
            yield from self._more_arguments(new)
        elif (header := _HEADER.match(self.text)) is not None and (name := _read_name(header[1])) is not None:
            self.named = True
            self._arguments = ObjectScanner()
            yield ToolCallDelta(index=self._index, call_id="", name=name)
            yield from self._more_arguments(self.text[header.end() :])
        elif self.complete and (call := _read_call(self.text)) is not None:
            self.named = True
            yield ToolCallDelta(index=self._index, call_id="", name=call[0], arguments=call[1])

    def _more_arguments(self, new: str) -> Iterator[ToolCallDelta]:
        if self._arguments is None or self._arguments_end or not new:
            return
        end = self._arguments.scan(new)
        self._arguments_end = end is not None
        yield ToolCallDelta(index=self._index, arguments=new[:end])


def _read_name(text: str) -> str | None:
    """The name that a JSON string is, or None where it is none: a bad escape, half a surrogate pair."""
    try:
        name: str = json.loads(text)
        name.encode("utf-8")
    except ValueError:
        return None
    return name


def _read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a complete object, or None where it is no call."""
    try:
        call: Any = json.loads(text)
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str):
            return None
        given = call.get("arguments", call.get("parameters", {}))
        arguments = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
        (name + arguments).encode("utf-8")
    except (ValueError, RecursionError):  # no JSON, too deep, or half a surrogate pair, which is no text
        return None
    return name, arguments
