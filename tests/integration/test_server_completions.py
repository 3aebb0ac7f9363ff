"""`/v1/completions` over a real model: what lm-eval asks, and that scores are those of generation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentkv.api import ChatRequest
from agentkv.collected import CollectedReply
from agentkv.config import ServiceConfig
from agentkv.sampling import Sampling
from agentkv.server.app import create_app
from agentkv.service import Service
from fakes import running_app
from small_models import PARAGRAPH


@pytest.fixture(scope="module")
def service(small_model: Callable[[str], Path]) -> Iterator[Service]:
    config = ServiceConfig.from_values(kv_memory="64MiB", context_length=2048)
    with Service.open(small_model("qwen2"), config) as service:
        yield service


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with running_app(create_app(service)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def complete(http: httpx.Client, service: Service, **fields: Any) -> dict[str, Any]:
    body = {"model": service.model_id, "temperature": 0, **fields}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_prompt_is_scored_as_it_was_generated(http: httpx.Client, service: Service) -> None:
    """The request of lm-eval's `local-completions`: token ids, echo, logprobs, one token."""
    prompt = list(service._tokenizer.encode(PARAGRAPH[:300]))
    generated = CollectedReply()
    for delta in service.submit(ChatRequest(prompt=tuple(prompt), max_tokens=12, sampling=Sampling(logprobs=1))):
        generated.add(delta)
    ids = [*prompt, *generated.token_ids]
    scored = complete(http, service, prompt=[ids, ids[:40]], max_tokens=1, logprobs=1, echo=True, seed=1234)
    first, second = scored["choices"]
    logprobs = first["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is None
    assert len(second["logprobs"]["tokens"]) == 41
    assert second["logprobs"]["token_logprobs"][1:40] == pytest.approx(logprobs["token_logprobs"][1:40], abs=1e-3)
    told = [token.logprob for token in generated.logprobs]
    assert logprobs["token_logprobs"][len(prompt) : -1] == pytest.approx(told, abs=1e-3)
    for token, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert token <= max(top.values())
    assert first["text"].startswith(PARAGRAPH[:300])
    assert scored["usage"]["prompt_tokens"] == len(ids) + 40


def test_a_prompt_alone(http: httpx.Client, service: Service) -> None:
    reply = complete(http, service, prompt=PARAGRAPH[:100], max_tokens=0, logprobs=2, echo=True)
    (choice,) = reply["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PARAGRAPH[:100], "length")
    assert reply["usage"]["completion_tokens"] == 0
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == PARAGRAPH[:100]
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert PARAGRAPH[offset:].startswith(token)


def test_streams_and_choices(http: httpx.Client, service: Service) -> None:
    body = {"model": service.model_id, "prompt": PARAGRAPH[:100], "n": 2, "seed": 5, "max_tokens": 6, "stream": True}
    text = http.post("/v1/completions", json=body).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"index":1' in text
    whole = complete(http, service, **{**body, "stream": False, "temperature": 1.0})
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert whole["usage"]["prompt_tokens"] == len(service._tokenizer.encode(PARAGRAPH[:100]))


def test_ids_that_are_no_tokens_are_refused(http: httpx.Client, service: Service) -> None:
    answer = http.post("/v1/completions", json={"model": service.model_id, "prompt": [10**6]})
    assert (answer.status_code, "token ids" in answer.text) == (400, True)
