"""Calls between `<tool_call>` tags, as Hermes 2 and 3, Qwen2.5 and Qwen3 write them.

<tool_call>
{"name": "search", "arguments": {"query": "tides"}}
</tool_call>
"""

from agentkv.api import ToolCallDelta
from agentkv.dialect.call_json import CallObject
from agentkv.dialect.tool_dialect import CallPiece, CallShape
from agentkv.text_cut import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesDialect:
    """See `ToolDialect`."""

    shape = CallShape(
        before=f'{OPEN}\n{{"name": "', between='", "arguments": ', after=f"}}\n{CLOSE}", separator="\n", marker=OPEN
    )
    instruction = (
        "For each function call, return a json object with function name and arguments within "
        f'{OPEN}{CLOSE} XML tags:\n{OPEN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE}'
    )

    def reader(self) -> "HermesReader":
        """See `ToolDialect.reader`."""
        return HermesReader()


class HermesReader:
    """Content up to a tag, a call up to the closing tag, and so on. What is between tags and no call stays content."""

    def __init__(self) -> None:
        self._text = ""  # read, but not given out: it may be a part of a tag, or space before one
        self._call: CallObject | None = None
        self._num_calls = 0

    def feed(self, text: str) -> CallPiece:
        """See `CallReader.feed`."""
        self._text += text
        content, calls = "", []
        while True:
            if self._call is None:
                before, tag, behind = self._text.partition(OPEN)
                if not tag:
                    break
                content += before.rstrip() if before.strip() or not self._num_calls else ""
                self._text, self._call = behind, CallObject(self._num_calls)
            done, spoken = self._read_call(self._call, calls)
            content += spoken
            if not done:
                return CallPiece(content, tuple(calls))
        sure = len(self._text) - overlap(self._text, OPEN)
        sure = len(self._text[:sure].rstrip())
        content, self._text = content + self._text[:sure], self._text[sure:]
        return CallPiece(content, tuple(calls))

    def finish(self) -> CallPiece:
        """See `CallReader.finish`."""
        text, self._text = self._text, ""
        if self._call is None:
            return CallPiece("" if self._num_calls and not text.strip() else text)
        if self._call.named:
            return CallPiece()
        return CallPiece(OPEN + self._call.text + text)

    def _read_call(self, call: CallObject, calls: list[ToolCallDelta]) -> tuple[bool, str]:
        """Whether the closing tag has come, and what turned out to be content."""
        if not call.complete:
            pieces, self._text = call.feed(self._text)
            calls += pieces
        if not call.complete:
            return False, ""
        between, tag, behind = self._text.partition(CLOSE)
        if not tag:
            return False, ""
        self._text, self._call = behind, None
        if not call.named:
            return True, OPEN + call.text + between + CLOSE
        self._num_calls += 1
        return True, ""
