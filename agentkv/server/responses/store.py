"""Responses that can be continued: a bounded memory, each tenant's own."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from agentkv.api import ChatMessage
from agentkv.server.errors import ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response and what it continues.

    Attributes:
        response: as it was sent.
        conversation: all messages up to and with its own, without instructions.
    """

    response: dict[str, Any]
    conversation: tuple[ChatMessage, ...]

    @property
    def num_characters(self) -> int:
        """Roughly what it takes; messages of a continued conversation are counted again in each response."""
        return sum(len(message.content) + len(message.reasoning) + 256 for message in self.conversation)


class ResponseStore:
    """Used from the server's event loop only.

    Args:
        max_characters: most text that is held; the response used longest ago leaves first.
    """

    def __init__(self, max_characters: int = 1 << 26) -> None:
        self._max_characters = max_characters
        self._num_characters = 0
        self._stored: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()

    def put(self, tenant: str, stored: StoredResponse) -> None:
        """Hold a response."""
        self._stored[tenant, stored.response["id"]] = stored
        self._num_characters += stored.num_characters
        while self._num_characters > self._max_characters:
            self._num_characters -= self._stored.popitem(last=False)[1].num_characters

    def get(self, tenant: str, response_id: str, param: str | None = None) -> StoredResponse:
        """Raises ApiError 404 for one that is not the tenant's, or no longer held."""
        stored = self._stored.get((tenant, response_id))
        if stored is None:
            message = f"the response {response_id!r} is not held here (any more): send the conversation as input"
            raise ApiError(404, message, param=param, code="response_not_found")
        self._stored.move_to_end((tenant, response_id))
        return stored

    def delete(self, tenant: str, response_id: str) -> None:
        """Forget a response. Raises ApiError 404 like `get`."""
        self._num_characters -= self.get(tenant, response_id).num_characters
        del self._stored[tenant, response_id]
