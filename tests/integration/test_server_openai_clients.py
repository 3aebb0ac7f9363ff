"""Unmodified clients against a real server: the official `openai` client and LangChain's `ChatOpenAI`."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from agentkv.errors import ContextTooLong, ServiceClosed
from agentkv.server.settings import ServerSettings
from fakes import FakeService, eventually, running_server

KEY = "client-key"
SHARED = FakeService()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SHARED, ServerSettings(api_keys=(KEY,))) as url:
        yield f"{url}/v1"


@pytest.fixture
def service() -> FakeService:
    SHARED.__dict__.update(FakeService().__dict__)
    return SHARED


@pytest.fixture
def client(url: str, service: FakeService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def ask(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "fake/model", "messages": [{"role": "user", "content": text}], **fields}


def test_a_whole_reply(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ask(seed=1, stop=["x"], user="u", temperature=0))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("one two three", "stop")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (13, 3, 16)
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 6
    assert reply.usage.model_extra is not None
    assert reply.usage.model_extra["agentkv"]["repaired"] == 3


def test_vendor_fields_as_extra_body(client: openai.OpenAI, service: FakeService) -> None:
    extra = {"agentkv": {"reuse": "off"}, "agent_hint": "critic", "cache_salt": "s"}
    client.chat.completions.create(**ask(), extra_body=extra)
    request = service.requests[0]
    assert (request.reuse, request.agent, request.cache_salt) == ("off", "critic", "s")


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream(client: openai.OpenAI, options: dict[str, Any]) -> None:
    chunks = list(client.chat.completions.create(**ask(stream=True, **options)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [16]


def test_the_stream_helper_accumulates(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ask()) as stream:
        reply = stream.get_final_completion()
    assert reply.choices[0].message.content == "one two three"
    assert reply.usage is not None
    assert reply.usage.total_tokens == 16


def test_max_tokens_ends_with_length(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ask(max_completion_tokens=2))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("one two", "length")


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake/model"]
    assert client.models.retrieve("fake/model").owned_by == "agentkv"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        ({"functions": [{"name": "f"}]}, openai.BadRequestError, "unsupported_parameter"),
        ({"messages": []}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_error_classes(client: openai.OpenAI, fields: dict[str, Any], error: type[openai.APIError], code: str) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**(ask() | fields))
    assert caught.value.code == code


def test_error_classes_of_keys_and_service(client: openai.OpenAI, service: FakeService) -> None:
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(**ask())
    service.refuse = ContextTooLong("9 tokens, 8 fit")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask(stream=True))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    service.refuse = ServiceClosed("the engine failed")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ask())


def test_a_failure_in_the_stream_is_an_api_error(client: openai.OpenAI, service: FakeService) -> None:
    service.fail_after = 1
    stream = client.chat.completions.create(**ask(stream=True))
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(stream)


def test_closing_the_stream_cancels_the_chat(client: openai.OpenAI, service: FakeService) -> None:
    service.hold_after = 1
    with client.chat.completions.create(**ask(stream=True)) as stream:
        next(iter(stream))
    assert eventually(lambda: service.streams[0].ended)
    assert service.streams[0].cancelled.is_set()


async def test_fifty_concurrent_streams_are_not_mixed(url: str, service: FakeService) -> None:
    async def one(client: openai.AsyncOpenAI, index: int) -> str:
        text = " ".join(f"{index}-{word}" for word in range(40))
        stream = await client.chat.completions.create(**ask(text, stream=True))
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(pieces) == text
        return text

    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        texts = await asyncio.gather(*(one(client, index) for index in range(50)))
    assert len(set(texts)) == 50
    assert len(set(service.tenants)) == 1


async def test_whole_replies_async(url: str, service: FakeService) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        replies = await asyncio.gather(*(client.chat.completions.create(**ask(f"n {n}")) for n in range(20)))
    assert [reply.choices[0].message.content for reply in replies] == [f"n {n}" for n in range(20)]


def test_chat_openai(url: str, service: FakeService) -> None:
    model = ChatOpenAI(base_url=url, api_key=KEY, model="fake/model", temperature=0, max_retries=0)  # pyright: ignore
    reply = model.invoke([("system", "be brief"), ("human", [{"type": "text", "text": "one two three"}])])
    assert reply.content == "one two three"
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["total_tokens"] == 24
    assert reply.usage_metadata["input_token_details"] == {"cache_read": 10}
    assert [message.role for message in service.requests[0].messages] == ["system", "user"]


def test_chat_openai_streams_with_usage(url: str, service: FakeService) -> None:
    model = ChatOpenAI(base_url=url, api_key=KEY, model="fake/model", max_retries=0)  # pyright: ignore
    chunks = list(model.stream("one two three"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.content == "one two three"
    assert total.usage_metadata is not None
    assert total.usage_metadata["total_tokens"] == 16


async def test_chat_openai_async(url: str, service: FakeService) -> None:
    model = ChatOpenAI(base_url=url, api_key=KEY, model="fake/model", max_retries=0)  # pyright: ignore
    assert (await model.ainvoke("one two")).content == "one two"
    assert "".join([str(chunk.content) async for chunk in model.astream("one two")]) == "one two"
