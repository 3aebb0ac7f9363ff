"""Segments, embeddings and tokens over HTTP on a small model: whose they are, what is kept, what deleting does."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from agentkv.api import ChatMessage, ChatRequest
from agentkv.client import Client
from agentkv.config import ServiceConfig
from agentkv.errors import ContextTooLong, InvalidRequest
from agentkv.server.app import create_app
from agentkv.server.settings import ServerSettings
from agentkv.service import Service
from fakes import running_app
from small_models import PARAGRAPH

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def service(small_model: Callable[[str], Path]) -> Iterator[Service]:
    config = ServiceConfig.from_values(
        kv_memory="8MiB", context_length=2048, max_reply_tokens=64, max_prompt_tokens=1500, max_kept_per_tenant="1MiB"
    )
    with Service.open(small_model("qwen2"), config) as service:
        yield service


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running_app(create_app(service, ServerSettings(api_keys=KEYS))) as url:
        yield url


@pytest.fixture
def clients(url: str, service: Service) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """One for each key, with nothing kept."""
    with (
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=60) as first,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEYS[1]}"}, timeout=60) as second,
    ):
        for client in (first, second):
            client.delete("/v1/agentkv/segments", params={"all": True})
        yield first, second
    service.check()


def chat(service: Service, client: httpx.Client, text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "you read"}, {"role": "user", "content": text}]
    body = {"model": service.model_id, "messages": messages, "max_tokens": 2, "temperature": 0, **fields}
    screened = {"agentkv": {"reuse": "screened", "selector": "repair_boundary(4)"}}
    answer = client.post("/v1/chat/completions", json=body | screened)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["agentkv"]


def listed(client: httpx.Client) -> list[dict[str, Any]]:
    return client.get("/v1/agentkv/segments").json()["data"]


def test_segments_are_listed_read_pinned_and_deleted_by_their_owner_only(
    service: Service, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    mine, other = clients
    messages = [{"role": "user", "content": PARAGRAPH}]
    warmed = mine.post("/v1/agentkv/segments/warm", json={"messages": messages, "agent_hint": "librarian", "pin": True})
    (name,) = warmed.json()["segments"]
    used = chat(service, mine, PARAGRAPH, agent_hint="reader")
    assert used["reused"] > 0.7 * sum(used[source] for source in ("prefix", "reused", "repaired", "computed"))
    assert list(used["authors"]) == ["librarian"]
    (segment,) = listed(mine)
    assert (segment["segment_id"], segment["pinned"], segment["author"], segment["reads"]) == (
        name,
        True,
        "librarian",
        1,
    )
    assert PARAGRAPH.startswith(segment["text"])
    assert segment["num_bytes"] > 0
    assert mine.get("/v1/agentkv/stats").json()["pinned_bytes"] == segment["num_bytes"]
    assert listed(other) == []
    assert chat(service, other, PARAGRAPH)["reused"] == 0
    for answer in (other.post(f"/v1/agentkv/segments/{name}/unpin"), other.delete(f"/v1/agentkv/segments/{name}")):
        assert answer.status_code == 404
    assert mine.post(f"/v1/agentkv/segments/{name}/unpin").json() == {"pinned": False, "unpinned": True}
    assert mine.delete(f"/v1/agentkv/segments/{name}").json() == {"deleted": 1}
    assert listed(mine) == []
    assert len(listed(other)) == 1


def test_the_client_manages_its_segments(
    service: Service, url: str, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    chat(service, clients[0], "for a client: " + PARAGRAPH[::-1], session_id="thread 1")
    with Client(url, api_key=KEYS[0]) as remote:
        (segment,) = remote.segments.list()
        assert segment.threads == ("thread 1",)
        remote.segments.pin(segment.segment_id)
        assert remote.segments.list()[0].pinned
        assert remote.segments.unpin(segment.segment_id)
        assert remote.segments.delete(thread="another") == 0
        assert remote.segments.delete(thread="thread 1") == 1
        with pytest.raises(InvalidRequest, match="kept"):
            remote.segments.pin(segment.segment_id)
        with pytest.raises(InvalidRequest, match="tenant"):
            remote.segments.list(tenant="x")


def test_a_thread_s_segments_go_with_it_unless_another_thread_has_met_them(
    service: Service, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    mine, _ = clients
    shared, private = "shared " + PARAGRAPH[:300], "private " + PARAGRAPH[100:400]
    chat(service, mine, shared, session_id="one")
    chat(service, mine, private, session_id="one", cache_salt="narrower")
    chat(service, mine, shared, session_id="two", messages=[{"role": "user", "content": shared}])
    assert sorted(tuple(segment["threads"]) for segment in listed(mine)) == [("one",), ("one", "two")]
    assert mine.delete("/v1/agentkv/segments", params={"thread": "one"}).json() == {"deleted": 1}
    (left,) = listed(mine)
    assert left["threads"] == ["two"]
    assert mine.delete("/v1/agentkv/segments", params={"thread": "one"}).json() == {"deleted": 0}
    assert mine.delete("/v1/agentkv/segments", params={"older_than": 3600}).json() == {"deleted": 0}
    assert mine.delete("/v1/agentkv/segments", params={"older_than": 0}).json() == {"deleted": 1}


def test_a_key_s_oldest_segments_make_room_and_nobody_else_s(
    service: Service, clients: tuple[httpx.Client, httpx.Client]
) -> None:
    mine, other = clients
    chat(service, other, "of the other: " + PARAGRAPH)
    for number in range(12):
        words = random.Random(number).sample(PARAGRAPH.split(), 90)
        chat(service, mine, f"{number}: {' '.join(words)}")
    kept = [segment["text"].partition(":")[0] for segment in listed(mine)]
    assert 1 < len(kept) < 12
    assert kept == [str(number) for number in range(12)][-len(kept) :]
    assert sum(segment["num_bytes"] for segment in listed(mine)) <= 1 << 20
    assert len(listed(other)) == 1


def test_embeddings_tell_near_texts_from_far_ones(service: Service, clients: tuple[httpx.Client, httpx.Client]) -> None:
    mine, _ = clients
    texts = [PARAGRAPH[:200], PARAGRAPH[5:200], "zzz 999 zzz 999"]
    answer = mine.post("/v1/embeddings", json={"model": service.model_id, "input": texts}).json()
    near, far = (np.dot(answer["data"][0]["embedding"], answer["data"][index]["embedding"]) for index in (1, 2))
    assert 1.0001 > near > far
    tokens = mine.post("/tokenize", json={"prompt": texts[0]}).json()["tokens"]
    again = mine.post("/v1/embeddings", json={"model": service.model_id, "input": [tokens, tokens]}).json()
    for item in again["data"]:
        assert item["embedding"] == pytest.approx(answer["data"][0]["embedding"], abs=1e-5)
    assert mine.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == texts[0]


def test_too_much_is_refused(service: Service) -> None:
    with pytest.raises(ContextTooLong, match="1500"):
        service.embedder.submit([PARAGRAPH * 12])
    with pytest.raises(InvalidRequest, match="outside"):
        service.embedder.submit([[10**6]])
    hello = (ChatMessage(role="user", content="hello"),)
    count = len(service.texts.tokenize(hello))
    with pytest.raises(InvalidRequest, match="at most 64"):
        service.submit(ChatRequest(messages=hello, max_tokens=65))
    (*_, last) = service.submit(ChatRequest(messages=hello, forced_reply="one two"))
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.queue is not None) == (count, True)
