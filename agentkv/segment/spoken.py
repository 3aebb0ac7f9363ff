"""The memory of what was said when tools were called.

A client gets content and calls, and sends them back as data: the words between them, their order and spacing are the
model's. With its very words in the prompt, the tokens of the reply fit again, and so does its KV.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from agentkv.api import ChatMessage, ToolCall

_Key = tuple[str, str, tuple[tuple[str, str], ...]]


class SpokenMemory:
    """Remembers replies that called tools by what they mean, per tenant. Thread-safe.

    Args:
        max_characters: most characters remembered; the least recently used reply leaves first.
    """

    def __init__(self, *, max_characters: int = 1 << 22) -> None:
        self._max_characters = max_characters
        self._num_characters = 0
        self._spoken: OrderedDict[_Key, str] = OrderedDict()
        self._lock = Lock()

    def remember(self, tenant: str, content: str, calls: Sequence[ToolCall], spoken: str) -> None:
        """These words mean this content and these calls."""
        key = _key(tenant, content, calls)
        with self._lock:
            self._num_characters += len(spoken) - len(self._spoken.pop(key, ""))
            self._spoken[key] = spoken
            while self._num_characters > self._max_characters:
                self._num_characters -= len(self._spoken.popitem(last=False)[1])

    def find(self, tenant: str, message: ChatMessage) -> str | None:
        """The words that mean a message's content and calls, as they were last said."""
        key = _key(tenant, message.content, message.tool_calls)
        with self._lock:
            if key in self._spoken:
                self._spoken.move_to_end(key)
            return self._spoken.get(key)


def _key(tenant: str, content: str, calls: Sequence[ToolCall]) -> _Key:
    return tenant, content.strip(), tuple((call.name, _meaning(call.arguments)) for call in calls)


def _meaning(arguments: str) -> str:
    """The JSON in one spelling, so that clients may read and write it."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
