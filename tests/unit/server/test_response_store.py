"""What `/v1/responses` stores: all of it is charged, and no tenant loses anything to another."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from agentkv.api import ChatMessage, ToolCall
from agentkv.server.errors import ApiError
from agentkv.server.responses.store import ResponseStore, StoredResponse
from agentkv.server.settings import ServerSettings
from fakes import FakeService, running_server

KILOBYTES = 64 << 10


def stored(name: str, size: int = 0) -> StoredResponse:
    return StoredResponse.of({"id": name}, (ChatMessage(role="user", content="x" * size),))


def held(store: ResponseStore, tenant: str, names: str) -> str:
    found = ""
    for name in names:
        with suppress(ApiError):
            found += store.get(tenant, name).response_id
    return found


def test_a_tenant_s_oldest_give_way_and_nobody_else_s() -> None:
    store = ResponseStore(4 * KILOBYTES)
    store.put("other", stored("a", KILOBYTES))
    for name in "abcd":
        store.put("mine", stored(name, KILOBYTES))
    assert held(store, "mine", "abcd") == "bcd"
    store.get("mine", "b")
    store.put("mine", stored("e", KILOBYTES))
    assert held(store, "mine", "bcde") == "bde"
    assert held(store, "other", "abcde") == "a"


def test_what_is_too_large_by_itself_drives_nothing_out() -> None:
    store = ResponseStore(4 * KILOBYTES)
    store.put("mine", stored("a"))
    store.put("mine", stored("b", 5 * KILOBYTES))
    assert held(store, "mine", "ab") == "a"


def test_deleting_gives_the_bytes_back() -> None:
    store = ResponseStore(4 * KILOBYTES)
    for _ in range(10):
        store.put("mine", stored("a", 3 * KILOBYTES))
        store.delete("mine", "a")
    store.put("mine", stored("b", KILOBYTES))
    store.put("mine", stored("c", KILOBYTES))
    assert held(store, "mine", "abc") == "bc"
    with pytest.raises(ApiError, match="not held"):
        store.delete("mine", "a")


CALL = ToolCall(call_id="1", name="f", arguments="x" * KILOBYTES)


@pytest.mark.parametrize(
    "message",
    [
        ChatMessage(role="user", content="x" * KILOBYTES),
        ChatMessage(role="assistant", content="", reasoning="x" * KILOBYTES),
        ChatMessage(role="assistant", content="", tool_calls=(CALL,)),
        ChatMessage(role="tool", content="", tool_call_id="x" * KILOBYTES),
    ],
)
def test_all_that_a_message_holds_is_charged(message: ChatMessage) -> None:
    assert StoredResponse.of({"id": "a"}, (message,)).num_bytes >= KILOBYTES


@pytest.mark.parametrize(
    "fields",
    [
        lambda text: {"instructions": text},
        lambda text: {"tools": [{"type": "function", "name": "f", "description": text}]},
        lambda text: {"metadata": {"a": text}},
        lambda text: {"input": text},
    ],
)
def test_all_that_a_request_leaves_behind_is_charged(fields: Callable[[str], dict[str, Any]]) -> None:
    """A response of which any part is large is not stored where there is no room for it; a small one is."""
    settings = ServerSettings.from_values(max_stored_bytes_per_key=KILOBYTES)
    with running_server(FakeService(), settings) as url:
        for size, status in ((100, 200), (KILOBYTES, 404)):
            body = {"model": "fake/model", "input": "hi", **fields("x" * size)}
            made = httpx.post(f"{url}/v1/responses", json=body).json()
            found = httpx.get(f"{url}/v1/responses/{made['id']}")
            assert found.status_code == status
            assert status == 404 or json.loads(found.content) == made
            assert made["store"] is (status == 200), "it says whether it is stored"
