"""Message objects and the events of a stream, as Anthropic's Messages API has them."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from agentkv.api import ChatDelta, Usage
from agentkv.wire import vendor_object

Event = dict[str, Any]
_GROWING = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


class MessageReply:
    """One message, which grows block by block.

    Args:
        model: as it was asked for.
        shows_thoughts: give thoughts out as blocks; otherwise they are left out.
    """

    def __init__(self, model: str, *, shows_thoughts: bool) -> None:
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}
        self._blocks: list[dict[str, Any]] = []
        self._inputs: dict[int, str] = {}  # JSON of calls' inputs, by block
        self._open = False  # the last block still grows
        self._shows_thoughts = shows_thoughts

    def opening(self) -> Event:
        """The first event of a stream; the counts come with the last."""
        unset = {"content": [], "stop_reason": None, "stop_sequence": None}
        usage = {"input_tokens": 0, "output_tokens": 0}
        return {"type": "message_start", "message": {**self._head, **unset, "usage": usage}}

    def add(self, delta: ChatDelta) -> Iterator[Event]:
        """Take a piece of the reply; the events that it brings."""
        if delta.reasoning and self._shows_thoughts:
            yield from self._grow("thinking", {"thinking": "", "signature": ""}, delta.reasoning)
        if delta.text:
            yield from self._grow("text", {"text": ""}, delta.text)
        for call in delta.tool_calls:
            if call.call_id is not None:
                yield from self._close()
                yield self._begin({"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}})
                self._inputs[len(self._blocks) - 1] = ""
            if call.arguments:
                self._inputs[len(self._blocks) - 1] += call.arguments
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        if delta.finish_reason is not None:
            yield from self._close()

    def closing(self, last: ChatDelta, usage: Usage) -> Iterator[Event]:
        """The last events of a stream."""
        yield {"type": "message_delta", "delta": _stop(last), "usage": usage_object(usage)}
        yield {"type": "message_stop"}

    def message(self, last: ChatDelta, usage: Usage) -> dict[str, Any]:
        """The whole message."""
        blocks = [
            {**block, "input": _read(self._inputs[index])} if index in self._inputs else block
            for index, block in enumerate(self._blocks)
        ]
        return {**self._head, "content": blocks, **_stop(last), "usage": usage_object(usage)}

    def _grow(self, kind: str, empty: dict[str, Any], text: str) -> Iterator[Event]:
        if not self._open or self._blocks[-1]["type"] != kind:
            yield from self._close()
            yield self._begin({"type": kind, **empty})
        name, field = _GROWING[kind]
        self._blocks[-1][field] += text
        yield self._delta({"type": name, field: text})

    def _begin(self, block: dict[str, Any]) -> Event:
        self._blocks.append(block)
        self._open = True
        return {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> Iterator[Event]:
        if self._open:
            self._open = False
            yield {"type": "content_block_stop", "index": len(self._blocks) - 1}


def _read(arguments: str) -> dict[str, Any]:
    """The object that arguments are; empty where they are none that JSON can hold: cut off by `max_tokens`, too deep,
    infinite numbers, half a surrogate pair."""
    try:
        read = from_json(arguments or "{}", allow_inf_nan=False)
        json.dumps(read, allow_nan=False)  # 1e999 is infinite, too
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _stop(last: ChatDelta) -> dict[str, Any]:
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    reason = "stop_sequence" if last.stopped_by else reasons.get(last.finish_reason or "", "end_turn")
    return {"stop_reason": reason, "stop_sequence": last.stopped_by}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage in this API's words: `input_tokens` are those that were not read from kept KV."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "agentkv": vendor_object(usage),
    }
