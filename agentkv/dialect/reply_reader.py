"""A reply's text, as it comes, as what it means: reasoning, content, tool calls."""

import uuid
from dataclasses import dataclass, replace

from agentkv.api import ToolCall, ToolCallDelta
from agentkv.dialect.thinking import ThinkingSplitter
from agentkv.dialect.tool_dialect import CallPiece, ToolDialect


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPiece:
    """What a stretch of a reply brought; see `agentkv.api.ChatDelta`."""

    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __add__(self, later: "ReplyPiece") -> "ReplyPiece":
        return ReplyPiece(
            reasoning=self.reasoning + later.reasoning,
            text=self.text + later.text,
            tool_calls=self.tool_calls + later.tool_calls,
        )


class ReplyReader:
    """Reads one reply.

    Args:
        thinks: the model may think first; its thoughts are split off.
        opened: the prompt has opened the thoughts.
        dialect: how it calls tools; None where it may not, and all is content.

    Attributes:
        spoken: what was said after the thoughts, as the model wrote it.
        content: what of it is content.
        calls: the tools it called.
        has_thought: it thought before it answered.
    """

    def __init__(self, *, thinks: bool, opened: bool, dialect: ToolDialect | None) -> None:
        self.spoken = ""
        self.content = ""
        self.calls: list[ToolCall] = []
        self.has_thought = False
        self._thinking = ThinkingSplitter(opened=opened) if thinks else None
        self._calls = dialect.reader() if dialect is not None else None

    def feed(self, text: str) -> ReplyPiece:
        """What is sure after this piece of text."""
        reasoning, spoken = self._thinking.feed(text) if self._thinking else ("", text)
        return self._take(reasoning, spoken)

    def finish(self) -> ReplyPiece:
        """The rest, once no more text comes."""
        reasoning, spoken = self._thinking.finish() if self._thinking else ("", "")
        last = self._take(reasoning, spoken)
        return last + self._understood(self._calls.finish()) if self._calls else last

    def _take(self, reasoning: str, spoken: str) -> ReplyPiece:
        self.spoken += spoken
        self.has_thought |= bool(reasoning)
        piece = self._understood(self._calls.feed(spoken) if self._calls else CallPiece(spoken))
        return replace(piece, reasoning=reasoning)

    def _understood(self, piece: CallPiece) -> ReplyPiece:
        self.content += piece.text
        return ReplyPiece(text=piece.text, tool_calls=tuple(self._known(call) for call in piece.calls))

    def _known(self, delta: ToolCallDelta) -> ToolCallDelta:
        """The piece, with an id where a call begins; the call grows by it."""
        if delta.name is None:
            call = self.calls[delta.index]
            self.calls[delta.index] = replace(call, arguments=call.arguments + delta.arguments)
            return delta
        call_id = f"call_{uuid.uuid4().hex[:24]}"
        self.calls.append(ToolCall(call_id=call_id, name=delta.name, arguments=delta.arguments))
        return replace(delta, call_id=call_id)
