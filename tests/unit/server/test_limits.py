"""Limits: how much runs at once, how long it may take, and what a client is told when it is over one."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from agentkv.errors import InvalidRequest
from agentkv.server.settings import ServerSettings
from fakes import FakeService, eventually, running_server

CHAT = {"model": "fake/model", "messages": [{"role": "user", "content": "one two three"}]}
LIMITS = ServerSettings(
    api_keys=("first", "second", "third"),
    max_chats_per_key=2,
    max_chats=3,
    first_token_timeout=0.3,
    request_timeout=0.6,
)


@pytest.fixture(scope="module")
def limited() -> Iterator[tuple[str, FakeService]]:
    service = FakeService()
    with running_server(service, LIMITS) as url:
        yield url, service


def ask(url: str, key: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=CHAT | fields, headers={"Authorization": f"Bearer {key}"})


def error_of(response: httpx.Response) -> dict[str, Any]:
    return response.json()["error"]


def test_a_key_has_only_so_much_running_and_so_have_all(limited: tuple[str, FakeService]) -> None:
    url, service = limited
    service.hold_after = 1
    with ExitStack() as open_streams, httpx.Client(timeout=5) as client:

        def begin(key: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            body = CHAT | {"stream": True}
            return open_streams.enter_context(
                client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
            )

        assert [begin("first").status_code, begin("first").status_code] == [200, 200]
        third = begin("first")
        third.read()
        assert (third.status_code, error_of(third)["code"]) == (429, "rate_limit_exceeded")
        assert int(third.headers["retry-after"]) >= 1
        assert begin("second").status_code == 200
        late = begin("third")
        late.read()
        assert (late.status_code, error_of(late)["code"]) == (503, "overloaded")
        assert int(late.headers["retry-after"]) >= 1
    service.hold_after = None
    assert eventually(lambda: ask(url, "first").status_code == 200)


def test_every_reply_of_a_request_counts(limited: tuple[str, FakeService]) -> None:
    url, service = limited
    never = ask(url, "first", n=3)
    assert (never.status_code, error_of(never)["param"]) == (400, "n")
    body, headers = {"model": "fake/model", "prompt": ["a", "b", "c"]}, {"Authorization": "Bearer first"}
    never = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
    assert (never.status_code, error_of(never)["param"]) == (400, "prompt")
    service.hold_after = 1
    body, headers = CHAT | {"stream": True, "n": 2}, {"Authorization": "Bearer first"}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as two:
        assert two.status_code == 200
        assert error_of(ask(url, "first"))["code"] == "rate_limit_exceeded"
        assert error_of(ask(url, "second", n=2))["code"] == "overloaded"
    service.hold_after = None
    assert eventually(lambda: ask(url, "first", n=2).status_code == 200)
    service.refuse = InvalidRequest("no")
    assert [ask(url, "first", n=2).status_code for _ in range(3)] == [400] * 3
    service.refuse = None
    assert ask(url, "first", n=2).status_code == 200


def test_a_chat_that_never_gets_its_turn_is_told_so(limited: tuple[str, FakeService]) -> None:
    url, service = limited
    service.hold_after = 0
    response = ask(url, "first")
    assert (response.status_code, error_of(response)["code"]) == (503, "overloaded")
    assert service.streams[-1].cancelled.is_set()


@pytest.mark.parametrize("stream", [True, False])
def test_a_chat_that_takes_too_long_is_ended(limited: tuple[str, FakeService], stream: bool) -> None:
    url, service = limited
    service.hold_after = 1
    response = ask(url, "first", stream=stream)
    assert "request_timeout" in response.text
    assert response.status_code == (200 if stream else 504)
    assert service.streams[-1].cancelled.is_set()
    service.hold_after = None
    assert ask(url, "first").status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": dict.fromkeys(map(str, range(1_000_000)), "")},
        {"messages": [{"role": "user", "content": ""}] * 250_000},
        {"stop": ["x"] * 1_000_000},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_body_of_a_million_values_is_refused_before_it_is_parsed(http: httpx.Client, fields: dict[str, Any]) -> None:
    began = time.process_time()
    body = json.dumps(CHAT | fields).encode()
    built = time.process_time() - began
    answer = http.post("/v1/chat/completions", content=body)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
    assert time.process_time() - began - built < 0.3  # parsing takes longer, and nothing else runs meanwhile


def test_too_many_choices_are_refused(http: httpx.Client, service: FakeService) -> None:
    response = http.post("/v1/chat/completions", json=CHAT | {"n": 17})
    assert (response.status_code, error_of(response)["param"]) == (400, "n")
    assert not service.requests


def test_every_answer_has_an_id_and_a_fault_names_it(
    http: httpx.Client, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    ids = {http.get(path).headers["x-request-id"] for path in ("/health", "/v1/models", "/nowhere")}
    assert len(ids) == 3
    service.refuse = RuntimeError("secret path")
    with caplog.at_level(logging.ERROR):
        response = http.post("/v1/chat/completions", json=CHAT)
    name = response.headers["x-request-id"]
    assert response.status_code == 500
    assert name in error_of(response)["message"]
    assert name in caplog.text


def test_a_fault_outside_chats_is_told_without_its_inside(
    http: httpx.Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("secret path")

    monkeypatch.setattr(service, "health", broken)
    response = http.get("/health")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert response.headers["x-request-id"] in error_of(response)["message"]
    assert "secret" not in response.text
