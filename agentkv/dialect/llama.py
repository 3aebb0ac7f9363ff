"""Calls as bare JSON objects, as Llama 3.1 to 3.3 write them: the whole reply is a call, or several with `;` between.

    {"name": "search", "parameters": {"query": "tides"}}

A leading `<|python_tag|>` is a special token, which text has not, or is dropped here where it was spelt out.
"""

from agentkv.dialect.call_json import CallObject
from agentkv.dialect.tool_dialect import CallPiece, CallShape
from agentkv.text_cut import overlap

PYTHON_TAG = "<|python_tag|>"
_BETWEEN = " \t\r\n;,"


class LlamaDialect:
    """See `ToolDialect`."""

    shape = CallShape(before='{"name": "', between='", "parameters": ', after="}", separator="; ")
    instruction = (
        'To call a function, answer with nothing but JSON: {"name": <function-name>, "parameters": <args-json-object>}.'
    )

    def reader(self) -> "LlamaReader":
        """See `ToolDialect.reader`."""
        return LlamaReader()


class LlamaReader:
    """A reply that begins with an object is read as calls, any other is content. An object that is no call is content,
    and so is all behind it."""

    def __init__(self) -> None:
        self._text = ""
        self._call: CallObject | None = None
        self._num_calls = 0
        self._is_content = False

    def feed(self, text: str) -> CallPiece:
        """See `CallReader.feed`."""
        self._text += text
        calls = []
        while not self._is_content:
            if self._call is None and not self._begin_call():
                break
            assert self._call is not None
            pieces, self._text = self._call.feed(self._text)
            calls += pieces
            if not self._call.complete:
                return CallPiece(calls=tuple(calls))
            if not self._call.named:
                self._is_content, self._text = True, self._call.text + self._text
            self._num_calls += self._call.named
            self._call = None
        if not self._is_content:
            return CallPiece(calls=tuple(calls))
        content, self._text = self._text, ""
        return CallPiece(content, tuple(calls))

    def finish(self) -> CallPiece:
        """See `CallReader.finish`."""
        text, self._text = self._text, ""
        if self._call is not None:
            return CallPiece() if self._call.named else CallPiece(self._call.text + text)
        return CallPiece("" if self._num_calls and not text.strip(_BETWEEN) else text)

    def _begin_call(self) -> bool:
        """Whether a call begins here; otherwise it is content, or not yet known."""
        rest = self._text.lstrip(_BETWEEN if self._num_calls else None)
        rest = rest.removeprefix(PYTHON_TAG).lstrip()
        if rest.startswith("{"):
            self._text, self._call = rest, CallObject(self._num_calls)
            return True
        self._is_content = bool(rest) and overlap(rest, PYTHON_TAG) < len(rest)
        return False
