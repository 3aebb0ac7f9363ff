"""Response objects and the events of a stream, as OpenAI's Responses API has them."""

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from agentkv.api import ChatDelta, ChatMessage, ToolCall, Usage
from agentkv.server.errors import ApiError
from agentkv.wire import vendor_object

Event = dict[str, Any]


class ResponseReply:
    """One response, which grows item by item.

    Args:
        model: as it was asked for.
        echoed: fields of the request that the response repeats.
    """

    def __init__(self, model: str, echoed: Mapping[str, Any]) -> None:
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **echoed,
        }
        self._items: list[dict[str, Any]] = []
        self._open = False  # the last item still grows
        self._num_events = 0

    def opening(self) -> Iterator[Event]:
        """The first events of a stream."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._object("in_progress"))

    def add(self, delta: ChatDelta) -> Iterator[Event]:
        """Take a piece of the reply; the events that it brings."""
        if delta.reasoning:
            yield from self._grow("reasoning", "reasoning_text", delta.reasoning)
        if delta.text:
            yield from self._grow("message", "output_text", delta.text)
        for call in delta.tool_calls:
            if call.call_id is not None:
                yield from self._close()
                yield from self._begin(_call_item(call.call_id, call.name or ""))
            if call.arguments:
                item = self._items[-1]
                item["arguments"] += call.arguments
                yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)
        if delta.finish_reason is not None:
            yield from self._close()

    def closing(self, response: dict[str, Any]) -> Iterator[Event]:
        """The last event of a stream, with the whole response."""
        yield self._event(f"response.{response['status']}", response=response)

    def failure(self, error: ApiError) -> Iterator[Event]:
        """The last event of a stream that broke off."""
        failed = self._object("failed", error={"code": error.code or "server_error", "message": str(error)})
        yield self._event("response.failed", response=failed)

    def response(self, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The whole response."""
        if finish_reason == "length":
            reason = {"reason": "max_output_tokens"}
            return self._object("incomplete", incomplete_details=reason, usage=usage_object(usage))
        return self._object("completed", usage=usage_object(usage))

    def message(self) -> ChatMessage:
        """The assistant's message that the items stand for."""
        texts = {"reasoning": "", "message": ""}
        calls: list[ToolCall] = []
        for item in self._items:
            if item["type"] == "function_call":
                call = ToolCall(call_id=item["call_id"], name=item["name"], arguments=item["arguments"])
                calls.append(call)
            else:
                texts[item["type"]] += "".join(part["text"] for part in item["content"])
        return ChatMessage(
            role="assistant", content=texts["message"], reasoning=texts["reasoning"], tool_calls=tuple(calls)
        )

    def _grow(self, kind: str, part_kind: str, text: str) -> Iterator[Event]:
        if not self._open or self._items[-1]["type"] != kind:
            yield from self._close()
            yield from self._begin(_text_item(kind))
            part = {"type": part_kind, "text": ""}
            if part_kind == "output_text":
                part |= {"annotations": [], "logprobs": []}
            self._items[-1]["content"].append(part)
            yield self._of_item("response.content_part.added", content_index=0, part=dict(part))
        self._items[-1]["content"][0]["text"] += text
        more = {"logprobs": []} if part_kind == "output_text" else {}
        yield self._of_item(f"response.{part_kind}.delta", content_index=0, delta=text, **more)

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self._items.append(item)
        self._open = True
        shown = {**item, "content": list(item["content"])} if "content" in item else dict(item)
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=shown)

    def _close(self) -> Iterator[Event]:
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        item["status"] = "completed"
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._of_item("response.function_call_arguments.done", **done)
        else:
            part = item["content"][0]
            more = {"logprobs": []} if part["type"] == "output_text" else {}
            yield self._of_item(f"response.{part['type']}.done", content_index=0, text=part["text"], **more)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _of_item(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _object(self, status: str, **fields: Any) -> dict[str, Any]:
        unset = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": list(self._items), **unset, **fields}


def _text_item(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"id": _id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []}
    return {"id": _id("msg"), "type": kind, "status": "in_progress", "role": "assistant", "content": []}


def _call_item(call_id: str, name: str) -> dict[str, Any]:
    item = {"id": _id("fc"), "type": "function_call", "status": "in_progress"}
    return {**item, "call_id": call_id, "name": name, "arguments": ""}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage in this API's words."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "agentkv": vendor_object(usage),
    }
