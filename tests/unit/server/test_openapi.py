"""`/openapi.json` and the answers agree: every route, in every shape that its answers have.

`make fuzz` asks the same of a server of the embedded model, thousands of times.
"""

from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.schemas import BaseSchema

from fakes import FakeService
from scripted import thinks_answers_and_calls

MODEL = "fake/model"
USER = [{"role": "user", "content": "one two"}]
TOOLS = [{"type": "function", "function": {"name": "level", "parameters": {"type": "object"}}}]
CHAT = {"model": MODEL, "messages": USER}
CLAUDE = CHAT | {"max_tokens": 9}
RESPONSE = {"model": MODEL, "input": "one two"}
ONE = "/v1/agentkv/segments/{segment_id}"

CASES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", CHAT | {"n": 2, "max_tokens": 1}),
    ("POST", "/v1/chat/completions", CHAT | {"tools": TOOLS}),
    ("POST", "/v1/chat/completions", CHAT | {"stream": True}),
    ("POST", "/v1/chat/completions", CHAT | {"n": 0}),
    ("POST", "/v1/completions", {"model": MODEL, "prompt": ["one", "two"]}),
    ("POST", "/v1/completions", {"model": MODEL, "prompt": "one", "stream": True}),
    ("POST", "/v1/messages", CLAUDE),
    ("POST", "/v1/messages", CLAUDE | {"tools": [{"name": "level", "input_schema": {}}]}),
    ("POST", "/v1/messages", CLAUDE | {"thinking": {"type": "enabled"}, "stream": True}),
    ("POST", "/v1/messages", CHAT),
    ("POST", "/v1/messages/count_tokens", CHAT),
    ("POST", "/v1/responses", RESPONSE),
    ("POST", "/v1/responses", RESPONSE | {"tools": [{"type": "function", "name": "level"}], "metadata": {"a": "b"}}),
    ("POST", "/v1/responses", RESPONSE | {"max_output_tokens": 1}),
    ("POST", "/v1/responses", RESPONSE | {"stream": True}),
    ("GET", "/v1/responses/{response_id}", None),
    ("DELETE", "/v1/responses/{response_id}", None),
    ("POST", "/v1/embeddings", {"model": MODEL, "input": ["one", "two"]}),
    ("POST", "/v1/embeddings", {"model": MODEL, "input": "one", "encoding_format": "base64"}),
    ("POST", "/tokenize", {"prompt": "one", "return_token_strs": True}),
    ("POST", "/tokenize", {"messages": USER}),
    ("POST", "/detokenize", {"tokens": [97]}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/{model}", None),
    ("GET", "/health", None),
    ("GET", "/ready", None),
    ("GET", "/version", None),
    ("GET", "/metrics", None),
    ("GET", "/v1/agentkv/segments", None),
    ("DELETE", "/v1/agentkv/segments", None),
    ("DELETE", ONE, None),
    ("POST", f"{ONE}/pin", None),
    ("POST", f"{ONE}/unpin", None),
    ("POST", "/v1/agentkv/segments/warm", {"messages": USER}),
    ("GET", "/v1/agentkv/stats", None),
]


@pytest.fixture(scope="module")
def schema(shared_url: str) -> BaseSchema:
    return schemathesis.openapi.from_dict(httpx.get(f"{shared_url}/openapi.json").json())


@pytest.mark.parametrize(("method", "path", "body"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_an_answer_is_what_the_schema_says(
    http: httpx.Client, service: FakeService, schema: BaseSchema, method: str, path: str, body: dict[str, Any] | None
) -> None:
    if body is not None and "tools" in body:
        service.script = thinks_answers_and_calls
    kept = http.post("/v1/responses", json=RESPONSE).json()["id"] if "{response_id}" in path else ""
    asked = path.format(model=MODEL, segment_id="7", response_id=kept)
    schema[path][method].validate_response(http.request(method, asked, json=body))


def test_a_closed_service_answers_as_the_schema_says(
    http: httpx.Client, service: FakeService, schema: BaseSchema
) -> None:
    service.close()
    for path in ("/health", "/ready"):
        answer = http.get(path)
        assert answer.status_code == 503
        schema[path]["GET"].validate_response(answer)


def test_every_operation_has_a_case_and_tells_what_success_is(http: httpx.Client) -> None:
    told = http.get("/openapi.json").json()
    operations = {(m.upper(), path): each for path, methods in told["paths"].items() for m, each in methods.items()}
    assert operations.keys() == {case[:2] for case in CASES}
    for (_, path), operation in operations.items():
        content = operation["responses"]["200"]["content"]
        described = content.get("application/json", {}).get("schema", {})
        assert "$ref" in described or path == "/metrics"
    assert told["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"] == [MODEL]
