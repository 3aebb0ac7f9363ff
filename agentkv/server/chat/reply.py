"""OpenAI's chat completion objects: the whole reply, and the chunks of a stream."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from agentkv.api import ChatDelta, ToolCallDelta, Usage
from agentkv.collected import CollectedReply
from agentkv.sampling import TokenLogprob
from agentkv.wire import call_object, usage_object


class Reply:
    """One request's answer with a reply for each choice.

    Args:
        model: as it was asked for.
        num_choices: how many replies were asked for.
    """

    def __init__(self, model: str, num_choices: int) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._collected = [CollectedReply() for _ in range(num_choices)]

    @property
    def num_choices(self) -> int:
        """How many replies were asked for."""
        return len(self._collected)

    def add(self, index: int, delta: ChatDelta) -> None:
        """Take a piece of the whole reply."""
        self._collected[index].add(delta)

    def completion(self, usage: Usage) -> dict[str, Any]:
        """The whole reply as one object."""
        choices = [self._choice(index, reply) for index, reply in enumerate(self._collected)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_object(usage)}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a stream: who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def chunks(self, index: int, delta: ChatDelta) -> Iterator[dict[str, Any]]:
        """The chunks that a piece of a reply brings: what is new, and why the reply ended."""
        new: dict[str, Any] = {}
        if delta.reasoning:
            new["reasoning_content"] = delta.reasoning
        if delta.text:
            new["content"] = delta.text
        if delta.tool_calls:
            new["tool_calls"] = [_call_chunk(call) for call in ToolCallDelta.joined(delta.tool_calls)]
        if new or delta.logprobs:
            yield self._chunk(index, new or {"content": ""}, None, delta.logprobs)
        if delta.finish_reason is not None:
            yield self._chunk(index, {}, delta.finish_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk: no choices, the usage."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_object(usage)}

    def _choice(self, index: int, reply: CollectedReply) -> dict[str, Any]:
        calls = [call_object(call) for call in reply.tool_calls]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not reply.text else reply.text,
            "refusal": None,
        }
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if calls:
            message["tool_calls"] = calls
        told = _logprobs_object(reply.logprobs)
        return {"index": index, "message": message, "logprobs": told, "finish_reason": reply.finish_reason}

    def _chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: Sequence[TokenLogprob] = ()
    ) -> dict[str, Any]:
        told = _logprobs_object(logprobs)
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], "usage": None}


def _logprobs_object(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    return {"content": [told.to_object() for told in logprobs], "refusal": None} if logprobs else None


def _call_chunk(call: ToolCallDelta) -> dict[str, Any]:
    if call.call_id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.call_id, "type": "function", "function": function}
