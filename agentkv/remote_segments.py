"""What a server keeps, and its tokenizer: the counterparts of `Service.segments` and `Service.texts`."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from agentkv.api import ChatMessage
from agentkv.errors import InvalidRequest
from agentkv.segment_api import SegmentInfo, check_deletion

Ask = Callable[..., dict[str, Any]]
"""Sends a request (method, path, `json`, `params`), raises what the server refuses, and gives the JSON it answers."""

_PATH = "/v1/agentkv/segments"


class RemoteSegments:
    """See `agentkv.api.SegmentManager`; the tenant is the API key's.

    Args:
        ask: sends to the server.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def list(self, *, tenant: str = "") -> tuple[SegmentInfo, ...]:
        """See `SegmentManager.list`."""
        _refuse_tenant(tenant)
        return tuple(_info(each) for each in self._ask("GET", _PATH)["data"])

    def pin(self, segment_id: str, *, tenant: str = "") -> None:
        """See `SegmentManager.pin`."""
        _refuse_tenant(tenant)
        self._ask("POST", f"{_one(segment_id)}/pin")

    def unpin(self, segment_id: str, *, tenant: str = "") -> bool:
        """See `SegmentManager.unpin`."""
        _refuse_tenant(tenant)
        return self._ask("POST", f"{_one(segment_id)}/unpin")["unpinned"]

    def delete(
        self,
        *,
        segment_id: str | None = None,
        thread: str | None = None,
        older_than: float | None = None,
        all: bool = False,
        tenant: str = "",
    ) -> int:
        """See `SegmentManager.delete`."""
        _refuse_tenant(tenant)
        check_deletion(segment_id, thread, older_than, all=all)
        path = _PATH if segment_id is None else _one(segment_id)
        conditions = {"thread": thread, "older_than": older_than, "all": all or None}
        params = {name: value for name, value in conditions.items() if value is not None}
        return self._ask("DELETE", path, params=params)["deleted"]


def _one(segment_id: str) -> str:
    """The path of one segment: whatever its id holds, no other's."""
    return f"{_PATH}/{quote(segment_id, safe='')}"


class RemoteTexts:
    """Texts to tokens, by the server's `/tokenize`.

    Args:
        ask: sends to the server.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def tokenize(self, text: str | Sequence[ChatMessage], *, tenant: str = "") -> tuple[int, ...]:
        """The token ids of a text, or of the prompt that messages make."""
        _refuse_tenant(tenant)
        body = {"prompt": text} if isinstance(text, str) else {"messages": [_message(each) for each in text]}
        return tuple(self._ask("POST", "/tokenize", json=body)["tokens"])


def _message(message: ChatMessage) -> dict[str, Any]:
    calls = [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    fields: dict[str, Any] = {"role": message.role, "content": message.content, "name": message.name}
    fields |= {"tool_calls": calls or None, "tool_call_id": message.tool_call_id}
    return {name: value for name, value in fields.items() if value is not None}


def _info(fields: dict[str, Any]) -> SegmentInfo:
    known = {name: fields[name] for name in SegmentInfo.__dataclass_fields__ if name != "tiers"}
    tiers = tuple(fields.get("tiers", ()))  # an earlier server does not tell
    return SegmentInfo(**{**known, "threads": tuple(known["threads"]), "tiers": tiers})


def _refuse_tenant(tenant: str) -> None:
    if tenant:
        raise InvalidRequest("a remote tenant can't be chosen: it is the API key's, see `api_key`", param="tenant")
