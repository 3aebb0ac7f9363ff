"""Responses that can be continued: a bounded memory for each tenant."""

import json
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from agentkv.api import ChatMessage
from agentkv.server.errors import ApiError

_OBJECT = 256
"""Bytes of a message or a call beside its texts, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response and what it continues.

    Attributes:
        response_id: names it among its tenant's.
        body: it, as JSON.
        conversation: all messages up to and with its own, without instructions.
        num_bytes: what it takes; messages of a continued conversation are counted again in each response.
    """

    response_id: str
    body: bytes
    conversation: tuple[ChatMessage, ...]
    num_bytes: int

    @classmethod
    def of(cls, response: dict[str, Any], conversation: tuple[ChatMessage, ...]) -> "StoredResponse":
        """A response as it was sent."""
        body = json.dumps(response, separators=(",", ":")).encode("ascii")
        num_bytes = _OBJECT + len(body) + sum(map(_bytes_of, conversation))
        return cls(response_id=response["id"], body=body, conversation=conversation, num_bytes=num_bytes)


@dataclass(slots=True)
class _Shelf:
    """One tenant's, the one used longest ago first."""

    num_bytes: int = 0
    stored: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)

    def pop(self, response_id: str) -> None:
        self.num_bytes -= self.stored.pop(response_id).num_bytes


class ResponseStore:
    """Used from the server's event loop only.

    Args:
        max_bytes: most bytes that are held of one tenant; its response used longest ago leaves first, nobody else's.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._shelves: dict[str, _Shelf] = {}

    def put(self, tenant: str, stored: StoredResponse) -> bool:
        """Hold a response, unless it alone is too large; whether it is held."""
        if stored.num_bytes > self._max_bytes:
            return False
        shelf = self._shelves.setdefault(tenant, _Shelf())
        shelf.stored[stored.response_id] = stored
        shelf.num_bytes += stored.num_bytes
        while shelf.num_bytes > self._max_bytes:
            shelf.pop(next(iter(shelf.stored)))
        return True

    def get(self, tenant: str, response_id: str, param: str | None = None) -> StoredResponse:
        """Raises ApiError 404 for one that is not the tenant's, or no longer held."""
        shelf = self._shelves.get(tenant)
        if shelf is None or response_id not in shelf.stored:
            message = f"the response {response_id!r} is not held here (any more): send the conversation as input"
            raise ApiError(404, message, param=param, code="response_not_found")
        shelf.stored.move_to_end(response_id)
        return shelf.stored[response_id]

    def delete(self, tenant: str, response_id: str) -> None:
        """Forget a response. Raises ApiError 404 like `get`."""
        self.get(tenant, response_id)
        self._shelves[tenant].pop(response_id)


def _bytes_of(message: ChatMessage) -> int:
    texts = [message.role, message.content, message.name, message.tool_call_id, message.reasoning]
    for call in message.tool_calls:
        texts += [call.call_id, call.name, call.arguments]
    return _OBJECT * (1 + len(message.tool_calls)) + sum(sys.getsizeof(text) for text in texts if text is not None)
