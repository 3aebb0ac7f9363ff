"""OpenAI's chat completion objects: the whole reply, and the chunks of a stream."""

import time
import uuid
from dataclasses import dataclass
from typing import Any

from agentkv.api import Usage
from agentkv.wire import usage_object


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What stays the same in every object of one reply.

    Attributes:
        reply_id: `chatcmpl-...`.
        model: the served model.
        created: Unix time in seconds.
    """

    reply_id: str
    model: str
    created: int

    @classmethod
    def begin(cls, model: str) -> "Reply":
        """A reply of `model` that begins now."""
        return cls(reply_id=f"chatcmpl-{uuid.uuid4().hex}", model=model, created=int(time.time()))

    def completion(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The whole reply as one object."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage_object(usage)}

    def opening(self) -> dict[str, Any]:
        """The first chunk of a stream: who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def text(self, text: str) -> dict[str, Any]:
        """A chunk of new text."""
        return self._chunk({"content": text}, None)

    def closing(self, finish_reason: str) -> dict[str, Any]:
        """The chunk that says why the reply ended."""
        return self._chunk({}, finish_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk: no choices, the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_object(usage)}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice], "usage": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.reply_id, "object": kind, "created": self.created, "model": self.model}
