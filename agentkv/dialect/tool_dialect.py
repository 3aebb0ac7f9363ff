"""The protocol of a dialect: one model family's way to write tool calls."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentkv.api import ToolCall, ToolCallDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """How one call is written: `before` name `between` arguments `after`; calls are joined by `separator`.

    Attributes:
        marker: what begins a call wherever it stands in a reply, a beginning of `before`; empty where only a reply that
            begins with a call is read as calls.
    """

    before: str
    between: str
    after: str
    separator: str
    marker: str = ""

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Calls as text; their arguments in the spacing that models are trained on."""
        written = (f"{self.before}{call.name}{self.between}{_spaced(call.arguments)}{self.after}" for call in calls)
        return self.separator.join(written)


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What a stretch of text brought.

    Attributes:
        text: content.
        calls: pieces of calls; `call_id` stands for "a new call" here, ids are given by the reader of the reply.
    """

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class CallReader(Protocol):
    """Reads one reply's calls out of its text, as it comes."""

    def feed(self, text: str) -> CallPiece:
        """What is sure after this piece of text."""
        ...

    def finish(self) -> CallPiece:
        """The rest, once no more text comes."""
        ...


class ToolDialect(Protocol):
    """One way to write calls.

    Attributes:
        shape: how it writes them.
        instruction: tells a model whose template knows no tools how to call them.
    """

    @property
    def shape(self) -> CallShape: ...

    @property
    def instruction(self) -> str: ...

    def reader(self) -> CallReader:
        """A fresh reader for one reply."""
        ...


def _spaced(arguments: str) -> str:
    try:
        spaced = json.dumps(json.loads(arguments), ensure_ascii=False)
        spaced.encode("utf-8")
    except (ValueError, RecursionError):  # cut off, broken, too deep, or half a surrogate pair: it stays as it was
        return arguments
    return spaced
