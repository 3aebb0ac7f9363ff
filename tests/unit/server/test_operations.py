"""Embeddings, tokens, segments and statistics over HTTP, on a fake service."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from agentkv.client import Client
from agentkv.errors import AgentKVError, InvalidRequest
from fakes import FakeService, eventually

MODEL = "fake/model"


@pytest.mark.parametrize(
    ("given", "lengths"), [("four", [4]), (["one", "three"], [3, 5]), ([1, 2], [2]), ([[1], [2, 3, 4]], [1, 3])]
)
def test_embeddings_of_every_kind_of_input(http: httpx.Client, given: Any, lengths: list[int]) -> None:
    answer = http.post("/v1/embeddings", json={"model": MODEL, "input": given}).json()
    assert [item["index"] for item in answer["data"]] == list(range(len(lengths)))
    for item, length in zip(answer["data"], lengths, strict=True):
        expected = np.asarray([length, 1, 2, 2]) / np.linalg.norm([length, 1, 2, 2])
        assert item["embedding"] == pytest.approx(expected.tolist())
    assert answer["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}


def test_embeddings_as_base64_and_shortened(http: httpx.Client) -> None:
    body = {"model": MODEL, "input": "four", "encoding_format": "base64", "dimensions": 2}
    shown = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(shown), dtype="<f4")
    assert vector.tolist() == pytest.approx([4 / 17**0.5, 1 / 17**0.5])


LONG_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "x" * (2**20 + 1)}}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"model": MODEL, "input": ""}, "input"),
        ("/v1/embeddings", {"model": MODEL, "input": []}, "input"),
        ("/v1/embeddings", {"model": MODEL, "input": ["x"] * 3000}, "input"),
        ("/v1/embeddings", {"model": MODEL, "input": [10**30]}, "input"),
        ("/v1/embeddings", {"model": MODEL, "input": "x", "dimensions": 5}, "dimensions"),
        ("/v1/embeddings", {"model": MODEL, "input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "refusal": 0}]}, "messages[0].refusal"),
        ("/v1/agentkv/segments/warm", {"messages": [{"role": "user", "audio": {}}]}, "messages[0].audio"),
        ("/v1/completions", {"model": MODEL, "prompt": ""}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "x" * (2**20 + 1)}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 2**19}] * 3}, "messages"),
        ("/tokenize", {"messages": [{"role": "assistant", "reasoning_content": "x" * (2**20 + 1)}]}, "messages"),
        ("/tokenize", {"messages": [{"role": "assistant", "tool_calls": [LONG_CALL]}]}, "messages"),
        ("/detokenize", {"tokens": ["x"]}, "tokens"),
        ("/detokenize", {"tokens": [2**30]}, "tokens"),
        ("/v1/agentkv/segments/warm", {"messages": []}, "messages"),
    ],
)
def test_what_can_not_be_done_is_named(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    response = http.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].startswith(param)


def test_tokens_of_a_very_long_prompt_are_not_counted(http: httpx.Client, service: FakeService) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * (2**20 + 1)}]}
    response = http.post("/v1/messages/count_tokens", json=body)
    assert response.status_code == 400
    assert "1048576" in response.json()["error"]["message"]
    assert not service.requests


def test_hanging_up_on_embeddings_cancels_them(http: httpx.Client, service: FakeService) -> None:
    service.embedder.hold = True
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/embeddings", json={"model": MODEL, "input": ["x", "y"]}, timeout=0.2)
    assert eventually(
        lambda: len(service.embedder.futures) == 2 and all(f.cancelled() for f in service.embedder.futures)
    )


def test_a_fault_of_an_embedding_is_told_without_its_inside(http: httpx.Client, service: FakeService) -> None:
    service.embedder.fault = RuntimeError("secret path")
    response = http.post("/v1/embeddings", json={"model": MODEL, "input": ["x", "y"]})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text


def test_tokens_there_and_back(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "häuser", "return_token_strs": True}).json()
    assert (answer["count"], answer["max_model_len"], answer["token_strs"][0]) == (6, 4096, "<104>")
    assert http.post("/detokenize", json={"model": MODEL, "tokens": answer["tokens"]}).json() == {"prompt": "häuser"}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "ab"}]}]}
    assert http.post("/tokenize", json=chat).json()["tokens"] == [97, 98]


def test_statistics_are_by_agent(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 40}], "agent_hint": "statistician"}
    before = http.get("/v1/agentkv/stats").json()["agents"].get("statistician", {"chats": 0})
    http.post("/v1/chat/completions", json=body)
    agent = http.get("/v1/agentkv/stats").json()["agents"]["statistician"]
    assert agent["chats"] == before["chats"] + 1
    assert agent["authors"] == {"researcher": 10}
    assert (agent["prefix"], agent["computed"], agent["misses"]) == (10, 10, {"too_short": 1})


def test_unknown_segments_are_404(http: httpx.Client) -> None:
    answers = [http.delete("/v1/agentkv/segments/7")]
    answers += [http.post(f"/v1/agentkv/segments/7/{action}") for action in ("pin", "unpin")]
    assert [(a.status_code, a.json()["error"]["code"]) for a in answers] == [(404, "segment_not_found")] * 3
    assert http.delete("/v1/agentkv/segments", params={"older_than": "nan"}).status_code == 400


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "all"),
        ("?all=false", "all"),
        ("?all=true&thread=t", "all"),
        ("?all=some", "all"),
        ("?thraed=t", "thraed"),
        ("?older_then=3600&all=true", "older_then"),
        ("?thread=", "thread"),
        ("?thread=a&thread=b", "thread"),
    ],
)
def test_a_deletion_that_does_not_say_which_deletes_nothing(
    http: httpx.Client, service: FakeService, query: str, param: str
) -> None:
    response = http.delete(f"/v1/agentkv/segments{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert service.segments.deletions == []


def test_a_deletion_that_says_which_is_passed_on(http: httpx.Client, service: FakeService) -> None:
    for query in ("?all=true", "?thread=t&older_than=2"):
        assert http.delete(f"/v1/agentkv/segments{query}").json() == {"deleted": 0}
    assert service.segments.deletions == [{"all": True}, {"thread": "t", "older_than": 2.0}]


@pytest.mark.parametrize("path", ["segments", "stats", "segments/7", "segments/7/pin", "segments/7/unpin"])
def test_an_unknown_query_parameter_is_refused(http: httpx.Client, path: str) -> None:
    method = "GET" if path in ("segments", "stats") else "POST" if path.endswith("pin") else "DELETE"
    response = http.request(method, f"/v1/agentkv/{path}", params={"limit": "3"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_parameter")


def test_the_client_deletes_what_it_was_told_and_nothing_else(shared_url: str, service: FakeService) -> None:
    with Client(shared_url) as client:
        for name in ("../segments?all=true", "?all=true", "a/b", ""):
            with pytest.raises(AgentKVError):
                client.segments.delete(segment_id=name)
        with pytest.raises(InvalidRequest, match="which"):
            client.segments.delete()
        assert service.segments.deletions == []
        client.segments.delete(all=True)
    assert service.segments.deletions == [{"all": True}]
