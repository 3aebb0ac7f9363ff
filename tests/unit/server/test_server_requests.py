"""What the server makes of request bodies: every field it honours, every one it refuses, every way to be malformed."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from agentkv.api import ChatMessage, ChatRequest, ResponseFormat, Reuse, Tool, ToolCall, ToolUse
from agentkv.sampling import Sampling
from agentkv.server.settings import ServerSettings
from agentkv.wire import chat_body
from fakes import FakeService, running_server

TOOLS = (Tool(name="f", description="finds", parameters={"type": "object"}), Tool(name="g", strict=True))
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "fake/model", "messages": HELLO, **fields}


def envelope(response: httpx.Response) -> dict[str, Any]:
    """The error object, whose shape is checked."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"] == ("server_error" if response.status_code >= 500 else "invalid_request_error")
    assert "Traceback" not in response.text
    return body["error"]


def test_all_honoured_fields_reach_the_service(http: httpx.Client, service: FakeService) -> None:
    body = chat(
        messages=[
            {"role": "developer", "content": "rules"},
            {"role": "system", "content": None},
            {"role": "user", "content": [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]},
            {"role": "assistant", "content": "one", "name": "critic"},
            {"role": "assistant", "content": "after another", "refusal": None, "annotations": [], "tool_calls": None},
            {"role": "tool", "content": "42", "tool_call_id": "call_1"},
        ],
        max_completion_tokens=7,
        temperature=0,
        stop="END",
        seed=11,
        agent_hint="writer",
        cache_salt="s",
        agentkv={"reuse": "screened", "selector": "query_attention(0.2)"},
    )
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert service.requests == [
        ChatRequest(
            messages=(
                ChatMessage(role="system", content="rules"),
                ChatMessage(role="system", content=""),
                ChatMessage(role="user", content="two parts"),
                ChatMessage(role="assistant", content="one", name="critic"),
                ChatMessage(role="assistant", content="after another"),
                ChatMessage(role="tool", content="42", tool_call_id="call_1"),
            ),
            max_tokens=7,
            temperature=0.0,
            stop=("END",),
            seed=11,
            reuse=Reuse.SCREENED,
            selector="query_attention(0.2)",
            agent="writer",
            cache_salt="s",
        )
    ]
    assert service.tenants == [""]


def test_sampling_fields_reach_the_service(http: httpx.Client, service: FakeService) -> None:
    given = {
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "min_tokens": 3,
        "ignore_eos": True,
    }
    told = {"logit_bias": {"5": -100}, "logprobs": True, "top_logprobs": 2}
    body = chat(**given, **told, n=2, seed=2**63 - 1, temperature=0.5)
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    sampling = Sampling(**given, logit_bias={5: -100.0}, logprobs=2)
    assert [request.sampling for request in service.requests] == [sampling] * 2
    assert [request.seed for request in service.requests] == [2**63 - 1, -(2**63)]
    as_client = {**given, "logit_bias": {"5": -100.0}, "logprobs": True, "top_logprobs": 2}
    assert chat_body(service.requests[0], "m") == chat_body(ChatRequest(), "m") | as_client | {
        "messages": HELLO,
        "seed": 2**63 - 1,
        "temperature": 0.5,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("top_p", 0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", "much"),
        ("logit_bias", {"the": 1}),
        ("logit_bias", {"5": 101}),
        ("min_tokens", -1),
        ("top_logprobs", 21),
        ("top_logprobs", 5),  # without logprobs
    ],
)
def test_sampling_fields_that_can_not_be_used(http: httpx.Client, service: FakeService, field: str, value: Any) -> None:
    response = http.post("/v1/chat/completions", json=chat(**{field: value}))
    assert response.status_code == 400
    assert envelope(response)["param"].startswith(field)
    assert service.requests == []


def test_nothing_given_means_the_defaults(http: httpx.Client, service: FakeService) -> None:
    nulls = dict.fromkeys(
        ["max_tokens", "temperature", "stop", "seed", "stream", "stream_options", "user", "agentkv", "tools", "top_p"]
    )
    assert http.post("/v1/chat/completions", json=chat(**nulls)).status_code == 200
    assert http.post("/v1/chat/completions", json=chat()).status_code == 200
    hello = (ChatMessage(role="user", content="hello"),)
    assert service.requests == [ChatRequest(messages=hello, temperature=1.0)] * 2


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": False},
        {"n": 1, "top_p": 1.0, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"max_tokens": 5, "max_completion_tokens": 5, "stop": ["a", "b"]},
        {"stream_options": {"include_usage": False}},
    ],
)
def test_fields_that_change_nothing_pass(http: httpx.Client, service: FakeService, fields: dict[str, Any]) -> None:
    assert http.post("/v1/chat/completions", json=chat(**fields)).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("return_token_ids", True),
        ("return_token_ids", 0),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("no_such_field", 1),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(
    http: httpx.Client, service: FakeService, field: str, value: Any
) -> None:
    response = http.post("/v1/chat/completions", json=chat(**{field: value}))
    error = envelope(response)
    assert response.status_code == 400
    assert error["param"] == field
    assert field in error["message"]
    assert not service.requests


def bad_message(**fields: Any) -> dict[str, Any]:
    return chat(messages=[*HELLO, {"role": "assistant", "content": "x", **fields}])


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]
MALFORMED: list[tuple[str, bytes | dict[str, Any], str | None]] = [
    ("empty body", b"", None),
    ("no JSON", b"model=fake", None),
    ("cut off", b'{"model": "fake/model", "messages": [', None),
    ("trailing text", json.dumps(chat()).encode() + b"}", None),
    ("invalid UTF-8", b'{"model": "fake/model", "messages": [{"role": "user", "content": "\xff\xfe"}]}', None),
    ("lone surrogate", b'{"model": "fake/model", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
    ("NUL bytes", b"\x00" * 64, None),
    ("deep JSON", b'{"model": "fake/model", "metadata": ' + b"[" * 200_000, None),
    ("an array", b"[]", None),
    ("null", b"null", None),
    ("no model", {"messages": HELLO}, "model"),
    ("no messages", {"model": "fake/model"}, "messages"),
    ("empty messages", chat(messages=[]), "messages"),
    ("messages as text", chat(messages="hello"), "messages"),
    ("message as text", chat(messages=["hello"]), "messages[0]"),
    ("no role", chat(messages=[{"content": "x"}]), "messages[0].role"),
    ("unknown role", chat(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
    ("content number", bad_message(content=5), "messages[1].content"),
    ("image part", bad_message(content=IMAGE), "messages[1].content"),
    ("part without text", bad_message(content=[{"type": "text"}]), "messages[1].content"),
    ("name number", bad_message(name=5), "messages[1].name"),
    ("long name", bad_message(name="n" * 300), "messages[1].name"),
    ("a call of nothing", bad_message(content=None, tool_calls=[{"id": "1"}]), "messages[1].tool_calls[0].function"),
    ("a tool of nothing", chat(tools=[{"type": "function"}]), "tools[0].function"),
    ("a tool's name", chat(tools=[tool("two words")]), "tools[0].function.name"),
    ("two tools of a name", chat(tools=[tool("f"), tool("f")]), "tools"),
    ("an unknown tool", chat(tools=[tool("f")], tool_choice=named("g")), "tool_choice"),
    ("a choice of nothing", chat(tool_choice="required"), "tool_choice"),
    ("an unknown choice", chat(tools=[tool("f")], tool_choice="maybe"), "tool_choice"),
    ("a choice without its name", chat(tools=[tool("f")], tool_choice={"type": "function"}), "tool_choice"),
    ("a format without its schema", chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    ("an unknown format", chat(response_format={"type": "yaml"}), "response_format"),
    ("unknown message field", bad_message(colour="red"), "messages[1].colour"),
    ("hot", chat(temperature=2.5), "temperature"),
    ("cold", chat(temperature=-0.1), "temperature"),
    ("temperature as text", chat(temperature="0"), "temperature"),
    ("NaN", b'{"model": "fake/model", "messages": [{"role": "user"}], "temperature": NaN}', "temperature"),
    ("no tokens", chat(max_tokens=0), "max_tokens"),
    ("half a token", chat(max_tokens=1.5), "max_tokens"),
    ("true tokens", chat(max_tokens=True), "max_tokens"),
    ("two limits", chat(max_tokens=1, max_completion_tokens=2), "max_tokens"),
    ("empty stop", chat(stop=""), "stop"),
    ("stop number", chat(stop=1), "stop"),
    ("many stops", chat(stop=["x"] * 17), "stop"),
    ("seed as text", chat(seed="1"), "seed"),
    ("huge seed", chat(seed=2**80), "seed"),
    ("stream as text", chat(stream="yes"), "stream"),
    ("stream option", chat(stream_options={"continuous_usage_stats": True}), "stream_options.continuous_usage_stats"),
    ("unknown mode", chat(agentkv={"reuse": "maybe"}), "agentkv.reuse"),
    ("unknown vendor field", chat(agentkv={"depth": 1}), "agentkv.depth"),
]


@pytest.mark.parametrize(("body", "param"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_malformed_bodies_get_the_envelope(
    http: httpx.Client, service: FakeService, body: bytes | dict[str, Any], param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post("/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert envelope(response)["param"] == param
    assert not service.requests


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/unknown", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/health", 405),
        ("GET", "/docs", 404),
        ("GET", "/redoc", 404),
    ],
)
def test_unknown_routes_and_methods_get_the_envelope(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert path in envelope(response)["message"]
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/agentkv/segments", "DELETE, GET"),
        ("/v1/agentkv/segments/warm", "POST"),
        ("/v1/agentkv/segments/7", "DELETE"),
        ("/v1/responses/x", "DELETE, GET"),
        ("/v1/models/fake/model", "GET"),
    ],
)
def test_all_methods_of_a_path_are_named(http: httpx.Client, path: str, methods: str) -> None:
    response = http.request("PATCH", path)
    assert (response.status_code, response.headers["allow"]) == (405, methods)


def test_a_model_that_is_not_served_is_not_found(http: httpx.Client, service: FakeService) -> None:
    response = http.post("/v1/chat/completions", json=chat(model="gpt-4o"))
    assert response.status_code == 404
    assert envelope(response)["code"] == "model_not_found"
    assert "fake/model" in response.text
    assert not service.requests


def pieces(count: int) -> Iterator[bytes]:
    yield from [b" " * 1024] * count


def test_bodies_over_the_limit_are_refused_unread() -> None:
    service = FakeService()
    with running_server(service, ServerSettings(max_body_bytes=4096)) as url:
        announced = httpx.post(f"{url}/v1/chat/completions", content=b" " * 5000)
        chunked = httpx.post(f"{url}/v1/chat/completions", content=pieces(8))
        fits = httpx.post(f"{url}/v1/chat/completions", json=chat())
    assert [announced.status_code, chunked.status_code, fits.status_code] == [413, 413, 200]
    assert envelope(announced)["code"] == envelope(chunked)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, ToolUse(tools=TOOLS)),
        ({"tool_choice": "none"}, ToolUse(tools=TOOLS, choice="none")),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            ToolUse(tools=TOOLS, choice="required", parallel=False),
        ),
        ({"tool_choice": named("g")}, ToolUse(tools=TOOLS, choice="required", only=("g",), parallel=False)),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("f")]}}},
            ToolUse(tools=TOOLS, only=("f",)),
        ),
    ],
)
def test_tools_and_choices(http: httpx.Client, service: FakeService, fields: dict[str, Any], use: ToolUse) -> None:
    tools = [tool("f", description="finds", parameters={"type": "object"}), tool("g", strict=True)]
    assert http.post("/v1/chat/completions", json=chat(tools=tools, **fields)).status_code == 200
    assert service.requests[0].tools == use


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ResponseFormat(schema={"type": "object"}, name="json_object")),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}, "strict": True}},
            ResponseFormat(schema={"type": "array"}, name="n"),
        ),
    ],
)
def test_formats(http: httpx.Client, service: FakeService, body: dict[str, Any], wanted: ResponseFormat | None) -> None:
    assert http.post("/v1/chat/completions", json=chat(response_format=body)).status_code == 200
    assert service.requests[0].response_format == wanted


def test_calls_and_thoughts_in_history(http: httpx.Client, service: FakeService) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"}
    body = chat(messages=[*HELLO, message], chat_template_kwargs={"enable_thinking": False})
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    (request,) = service.requests
    assert request.messages[1] == ChatMessage(
        role="assistant",
        content="",
        tool_calls=(ToolCall(call_id="1", name="f", arguments='{"a": 1}'),),
        reasoning="hm",
    )
    assert request.template_options == {"enable_thinking": False}


def test_ten_thousand_tiny_messages(http: httpx.Client, service: FakeService) -> None:
    messages = [{"role": "user", "content": str(index)} for index in range(10_000)]
    assert http.post("/v1/chat/completions", json=chat(messages=messages)).status_code == 200
    assert [message.content for message in service.requests[0].messages] == [str(index) for index in range(10_000)]


MANY = 20_000
ENTRIES = b",".join(b'"%d": [0]' % index for index in range(MANY))


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", b'"messages": [%s]', "messages[0]"),
        ("/v1/chat/completions", b'"messages": [{"role": "user"}], "stop": [%s]', "stop[0]"),
        ("/v1/chat/completions", b'"messages": [{"role": "user"}], "tools": [%s]', "tools[0]"),
        ("/v1/completions", b'"prompt": ["x", %s]', "prompt[1]"),
        ("/v1/completions", b'"prompt": "x", "stop": [%s]', "stop[0]"),
        ("/v1/embeddings", b'"input": ["x", %s]', "input"),
        ("/v1/messages", b'"max_tokens": 1, "messages": [{"role": "user", "content": [%s]}]', "messages[0].content"),
        ("/v1/messages", b'"max_tokens": 1, "messages": [{"role": "user", "content": ""}], "tools": [%s]', "tools[0]"),
        ("/v1/responses", b'"input": [%s]', "input[0]"),
        ("/v1/responses", b'"input": "x", "tools": [%s]', "tools[0]"),
        ("/v1/responses", b'"input": [{"type": "reasoning", "content": [%s]}]', "input[0].content[0]"),
        ("/v1/agentkv/segments/warm", b'"messages": [%s]', "messages[0]"),
        ("/tokenize", b'"messages": [%s]', "messages[0]"),
        ("/detokenize", b'"tokens": [{}, %s]', "tokens[0]"),
    ],
)
def test_a_list_of_wrong_items_is_refused_at_its_first(
    http: httpx.Client, path: str, fields: bytes, param: str
) -> None:
    """Telling all the errors of a large body would take gigabytes."""
    body = b'{"model": "fake/model", ' + fields % (b"1," * MANY + b"1") + b"}"
    response = http.post(path, content=body)
    assert response.status_code == 400
    if path == "/v1/messages":
        assert param in response.json()["error"]["message"]
    else:
        assert envelope(response)["param"].startswith(param)


@pytest.mark.parametrize(
    ("path", "field", "param"),
    [
        ("/v1/chat/completions", b'"messages": [{"role": "user"}], "logit_bias"', "logit_bias"),
        ("/v1/chat/completions", b'"messages": [{"role": "user"}], "chat_template_kwargs"', "chat_template_kwargs"),
        ("/v1/responses", b'"input": "x", "metadata"', "metadata"),
        ("/v1/chat/completions", b'"messages": [{"role": "user"}], "agentkv"', None),
    ],
)
def test_an_object_of_wrong_entries_is_refused_as_one(
    http: httpx.Client, path: str, field: bytes, param: str | None
) -> None:
    response = http.post(path, content=b'{"model": "fake/model", ' + field + b": {" + ENTRIES + b"}}")
    assert response.status_code == 400
    assert envelope(response)["param"] == param


def test_a_token_of_many_digits_is_refused(http: httpx.Client) -> None:
    body = {"model": "fake/model", "messages": HELLO, "logit_bias": {"1" * 5000: 1}}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert envelope(response)["param"] == "logit_bias"
