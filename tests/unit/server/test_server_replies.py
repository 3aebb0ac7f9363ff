"""What the server answers: whole replies, event streams, failures, and what a client that hangs up leaves behind."""

import json
from typing import Any

import httpx
import pytest

from agentkv.errors import ContextTooLong, InvalidRequest, ServiceClosed, TemplateRefused
from fakes import FakeService, eventually


def chat(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "fake/model", "messages": [{"role": "user", "content": text}], **fields}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The stream's objects; it must end with `[DONE]`."""
    data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert data.pop() == "[DONE]"
    return [json.loads(item) for item in data]


USAGE = {
    "prompt_tokens": 13,
    "completion_tokens": 3,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 6},
    "completion_tokens_details": {"reasoning_tokens": 0},
    "agentkv": {
        "prefix": 3,
        "reused": 3,
        "repaired": 3,
        "computed": 4,
        "segments": 2,
        "restored": 0,
        "row_layers": 26,
        "full_row_layers": 52,
        "selector": "query_attention(0.2)",
        "agent": "writer",
        "authors": {"researcher": 3},
        "misses": {"too_short": 1},
        "estimated_kl": None,
        "queue": 0.125,
        "ttft": 0.25,
        "duration": 0.5,
    },
}
VENDOR: dict[str, Any] = {"agent_hint": "writer", "agentkv": {"selector": "query_attention(0.2)"}}


def test_a_whole_reply(http: httpx.Client) -> None:
    body = http.post("/v1/chat/completions", json=chat(**VENDOR)).json()
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "fake/model")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two three", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == USAGE


def test_a_stream_is_role_text_reason_and_always_usage(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json=chat(stream=True, **VENDOR))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, last = events(response)
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": " two"},
        {"content": " three"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, None, "stop"]
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_cached_tokens_are_zero_not_missing(http: httpx.Client) -> None:
    usage = http.post("/v1/chat/completions", json=chat("abc")).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_text_with_line_separators_stays_in_one_event(http: httpx.Client) -> None:
    text = "a\u2028b\x85c\r\nd 火\U0001f600"
    chunks = events(http.post("/v1/chat/completions", json=chat(text, stream=True)))
    assert "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]) == text


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (ContextTooLong("9 tokens, 8 fit"), 400, "messages", "context_length_exceeded"),
        (TemplateRefused("roles must alternate"), 400, "messages", "template_refused"),
        (InvalidRequest("no such rule", param="selector"), 400, "selector", "invalid_value"),
        (ServiceClosed("the engine failed"), 503, None, "service_closed"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_of_submit_have_their_status(
    http: httpx.Client, service: FakeService, error: Exception, status: int, param: str | None, code: str, stream: bool
) -> None:
    service.refuse = error
    response = http.post("/v1/chat/completions", json=chat(stream=stream))
    assert response.status_code == status
    answer = response.json()["error"]
    assert (answer["message"], answer["param"], answer["code"]) == (str(error), param, code)


@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_is_told_without_its_inside(http: httpx.Client, service: FakeService, stream: bool) -> None:
    service.refuse = RuntimeError("secret path")
    response = http.post("/v1/chat/completions", json=chat(stream=stream))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text


def test_a_failure_in_a_stream_comes_as_an_event(http: httpx.Client, service: FakeService) -> None:
    service.fail_after = 2
    response = http.post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 200
    assert events(response)[-1]["error"] == {
        "message": "the engine failed",
        "type": "server_error",
        "param": None,
        "code": "service_closed",
    }


def test_a_failure_in_a_whole_reply_has_its_status(http: httpx.Client, service: FakeService) -> None:
    service.fail_after, service.failure = 2, ValueError("secret path")
    response = http.post("/v1/chat/completions", json=chat())
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_fault_of_one_of_several_replies_ends_the_others(
    http: httpx.Client, service: FakeService, stream: bool
) -> None:
    service.fail_after, service.failure, service.fails = 1, RuntimeError("secret path"), lambda asked: asked.seed == 2
    service.hold_after = 1
    response = http.post("/v1/chat/completions", json=chat(stream=stream, n=3, seed=1))
    told = events(response)[-1] if stream else response.json()
    assert (response.status_code, told["error"]["code"]) == (200 if stream else 500, "internal_error")
    assert "secret" not in response.text
    assert eventually(lambda: all(each.cancelled.is_set() for each in service.streams))


def test_an_abort_under_a_listening_client_is_an_error(http: httpx.Client, service: FakeService) -> None:
    service.hold_after = 1
    with http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        assert eventually(lambda: bool(service.streams))
        service.streams[0].cancel()
        response.read()
    assert events(response)[-1]["error"]["code"] == "service_closed"


def test_hanging_up_on_a_stream_cancels_the_chat(http: httpx.Client, service: FakeService) -> None:
    service.hold_after = 1
    with http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        lines = response.iter_lines()
        assert "assistant" in next(lines)
    assert eventually(lambda: service.streams[0].ended)
    assert service.streams[0].cancelled.is_set()


def test_hanging_up_on_a_whole_reply_cancels_the_chat(http: httpx.Client, service: FakeService) -> None:
    service.hold_after = 0
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=chat(), timeout=0.2)
    assert eventually(lambda: service.streams[0].ended)
    assert service.streams[0].cancelled.is_set()


def test_models(http: httpx.Client) -> None:
    served = http.get("/v1/models").json()
    assert served["object"] == "list"
    (model,) = served["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("fake/model", "model", 4096)
    assert http.get("/v1/models/fake/model").json() == model
    assert http.get("/v1/models/fake%2Fmodel").json() == model
    unknown = http.get("/v1/models/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_health_follows_the_service(http: httpx.Client, service: FakeService) -> None:
    assert http.get("/health").json()["status"] == "ok"
    assert http.get("/ready").status_code == 200
    assert http.get("/version").json().keys() == {"version"}
    service.close()
    closed = http.get("/health")
    assert (closed.status_code, closed.json()["status"], closed.json()["error"]["code"]) == (503, "closed", "not_ready")
    assert http.get("/ready").json()["error"]["code"] == "not_ready"
