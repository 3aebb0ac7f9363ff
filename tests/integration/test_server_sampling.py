"""Sampling as clients ask for it, over the real service with a small model: choices, log-probabilities, lengths."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from agentkv.api import ChatMessage, ChatRequest, Reuse
from agentkv.client import Client
from agentkv.config import ServiceConfig
from agentkv.errors import InvalidRequest
from agentkv.sampling import Sampling
from agentkv.server.app import create_app
from agentkv.service import Service
from fakes import running_app
from small_models import PARAGRAPH


@pytest.fixture(scope="module")
def service(small_model: Callable[[str], Path]) -> Iterator[Service]:
    with Service.open(small_model("qwen2"), ServiceConfig(kv_memory=64 << 20)) as service:
        yield service


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running_app(create_app(service)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(service: Service, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PARAGRAPH[:300]}]
    return {"model": service.model_id, "messages": messages, "max_tokens": 6, **fields}


def test_choices_share_a_prompt_and_have_their_own_seeds(client: openai.OpenAI, service: Service) -> None:
    fields = ask(service, temperature=1.0, seed=5, extra_body={"cache_salt": "choices"})
    reply = client.chat.completions.create(**fields, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) > 1
    assert texts[0] == client.chat.completions.create(**fields).choices[0].message.content
    second = fields | {"seed": 6}
    assert texts[1] == client.chat.completions.create(**second).choices[0].message.content
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**fields, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_prompt_that_several_ask_at_once_is_computed_once(service: Service) -> None:
    chat = ChatRequest(
        messages=(ChatMessage(role="user", content=PARAGRAPH),), reuse=Reuse.EXACT, max_tokens=3, cache_salt="once"
    )
    streams = [service.submit(chat) for _ in range(4)]
    usages = [list(stream)[-1].usage for stream in streams]
    computed = sorted(usage.reuse.computed for usage in usages if usage is not None)
    assert computed[-1] == usages[0].prompt_tokens
    assert all(count <= 16 for count in computed[:-1]), "the others run what does not fill a block"


def test_log_probabilities_plain_streamed_and_in_process(client: openai.OpenAI, service: Service, url: str) -> None:
    fields = ask(service, temperature=0, logprobs=True, top_logprobs=3)
    plain = client.chat.completions.create(**fields).choices[0]
    assert plain.logprobs is not None
    told = plain.logprobs.content
    assert told is not None
    assert len(told) == 6
    text = b"".join(bytes(token.bytes or ()) for token in told).decode(errors="replace")
    assert text.startswith(plain.message.content or "")
    for token in told:
        assert bytes(token.bytes or ()).decode(errors="replace") == token.token
        assert [token.token, token.logprob] == [token.top_logprobs[0].token, token.top_logprobs[0].logprob], "greedy"
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1
    streamed = [
        token
        for chunk in client.chat.completions.create(**fields, stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    assert [token.token for token in streamed] == [token.token for token in told]
    chat = ChatRequest(
        messages=(ChatMessage(role="user", content=PARAGRAPH[:300]),), max_tokens=6, sampling=Sampling(logprobs=3)
    )
    here = [token for delta in service.submit(chat) for token in delta.logprobs]
    with Client(url) as remote:
        there = [token for delta in remote.submit(chat) for token in delta.logprobs]
    assert [(token.token, token.utf8) for token in here] == [(token.token, token.utf8) for token in there]
    assert [token.logprob for token in here] == pytest.approx([token.logprob for token in told], abs=1e-4)


def test_a_reply_that_must_go_on(client: openai.OpenAI, service: Service) -> None:
    ends = {str(token): 100 for token in service._tokenizer.stop_token_ids}
    fields = ask(service, temperature=0, logit_bias=ends)

    def length(**extra: Any) -> tuple[int, str | None]:
        reply = client.chat.completions.create(**fields, extra_body=extra)
        assert reply.usage is not None
        return reply.usage.completion_tokens, reply.choices[0].finish_reason

    assert length() == (1, "stop")
    assert length(min_tokens=3) == (4, "stop")
    assert length(ignore_eos=True) == (6, "length")


def test_the_service_names_what_it_can_not_use(service: Service) -> None:
    hello = (ChatMessage(role="user", content="hello"),)
    for name, value in (("top_p", 0.0), ("logit_bias", {10**6: 1.0}), ("min_tokens", 10**6), ("logprobs", 21)):
        with pytest.raises(InvalidRequest, match=name) as refused:
            service.submit(ChatRequest(messages=hello, sampling=Sampling(**{name: value})))
        assert refused.value.param == name
