"""The server over the real service with a small model: reuse without a change in the client, tenants, hanging up."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import SecretStr

from agentkv.api import ChatMessage, ChatRequest, Reuse
from agentkv.client import Client
from agentkv.config import ServiceConfig
from agentkv.errors import ContextTooLong, InvalidRequest
from agentkv.server.app import create_app
from agentkv.server.settings import ServerSettings
from agentkv.service import Service
from fakes import eventually, running_app
from langchain_agentkv import ChatAgentKV
from small_models import PARAGRAPH

KEYS = ("first-key", "second-key")
METRICS_KEY = SecretStr("metrics-key")


@pytest.fixture(scope="module")
def service(small_model: Callable[[str], Path]) -> Iterator[Service]:
    config = ServiceConfig.from_values(kv_memory="64MiB", context_length=2048)
    with Service.open(small_model("qwen2"), config) as service:
        yield service


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running_app(create_app(service, ServerSettings(api_keys=KEYS, metrics_key=METRICS_KEY))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[0], max_retries=0) as client:
        yield client


def ask(service: Service, *texts: str, **fields: Any) -> dict[str, Any]:
    roles = ["system", "user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"model": service.model_id, "messages": messages, "temperature": 0, "max_tokens": 8, **fields}


def test_the_same_reply_in_process_over_http_and_streamed(service: Service, url: str, client: openai.OpenAI) -> None:
    request = ChatRequest(messages=(ChatMessage(role="user", content=PARAGRAPH[:200]),), max_tokens=12)
    direct = "".join(delta.text for delta in service.submit(request))
    with Client(url, api_key=KEYS[0]) as remote:
        assert "".join(delta.text for delta in remote.submit(request)) == direct
    body = ask(service, max_tokens=12) | {"messages": [{"role": "user", "content": PARAGRAPH[:200]}]}
    assert client.chat.completions.create(**body).choices[0].message.content == direct
    assert ChatAgentKV(service=service, max_tokens=12).invoke(PARAGRAPH[:200]).content == direct


def cached(reply: Any) -> int:
    return reply.usage.prompt_tokens_details.cached_tokens


def test_a_prefix_is_found_by_its_tenant_only(service: Service, client: openai.OpenAI) -> None:
    body = ask(service, "you read reports", "tenants: " + PARAGRAPH)
    other = client.with_options(api_key=KEYS[1])
    first, again = (client.chat.completions.create(**body) for _ in range(2))
    stranger = other.chat.completions.create(**body)
    salted = client.chat.completions.create(**body, extra_body={"cache_salt": "mine"})
    assert cached(first) == cached(stranger) == cached(salted) == 0
    assert cached(again) > 0.8 * again.usage.prompt_tokens
    assert {reply.choices[0].message.content for reply in (first, again, stranger, salted)} == {
        first.choices[0].message.content
    }


def test_a_message_is_reused_behind_another_prompt(service: Service, client: openai.OpenAI) -> None:
    screened = {"extra_body": {"agentkv": {"reuse": "screened", "selector": "repair_boundary(4)"}}}
    report = "screened: " + PARAGRAPH
    client.chat.completions.create(**ask(service, "you research the harbour", report), **screened)
    body = ask(service, "you are the critic, and you doubt every word that others write", report)
    usage: Any = client.chat.completions.create(**body, **screened).usage
    sources = usage.agentkv
    assert sources["reused"] > 0.7 * usage.prompt_tokens
    assert sources["prefix"] + sources["reused"] + sources["repaired"] + sources["computed"] == usage.prompt_tokens
    assert sources["row_layers"] < 0.4 * sources["full_row_layers"]
    assert sources["selector"].startswith("repair_boundary")
    off: Any = client.chat.completions.create(**body, extra_body={"agentkv": {"reuse": "off"}}).usage
    assert (off.agentkv["computed"], off.agentkv["reused"]) == (off.prompt_tokens, 0)


async def test_concurrent_streams_give_what_each_gets_alone(service: Service, url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEYS[0], max_retries=0) as client:

        async def one(index: int) -> str:
            body = ask(service, "you are alone", f"{index}: {PARAGRAPH[index * 10 : index * 10 + 150]}", stream=True)
            stream = await client.chat.completions.create(**body)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        together = await asyncio.gather(*(one(index) for index in range(12)))
        alone = [await one(index) for index in range(12)]
    assert together == alone
    assert len(set(together)) > 6


def test_hanging_up_on_a_stream_frees_the_chat(service: Service, client: openai.OpenAI) -> None:
    with client.chat.completions.create(**ask(service, "you talk", "forever", stream=True, max_tokens=1900)) as stream:
        next(iter(stream))
    assert eventually(lambda: service.memory().pinned == 0, seconds=10)
    service.check()


def test_hanging_up_on_a_whole_reply_frees_the_chat(service: Service, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**ask(service, "you talk", "forever", max_tokens=1900), timeout=0.2)
    assert eventually(lambda: service.memory().pinned == 0, seconds=10)
    service.check()


def test_what_can_never_run_is_refused(service: Service, client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask(service, "x", PARAGRAPH * 20), stream=True)
    assert caught.value.code == "context_length_exceeded"
    remote = ChatAgentKV(base_url=url, api_key=KEYS[0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ContextTooLong):
        remote.invoke(PARAGRAPH * 20)
    with pytest.raises(InvalidRequest, match="no_such_rule"):
        remote.invoke("hi", reuse="screened", selector="no_such_rule")


async def test_agents_read_each_other_in_a_graph(service: Service) -> None:
    model = ChatAgentKV(service=service, reuse=Reuse.SCREENED, selector="repair_none", max_tokens=8)
    finding = "The water has risen by 17 centimetres since 1912, and 2,306 ships have called; nothing else is certain."

    def agent(system: str, **call: str) -> Callable[[MessagesState], Any]:
        async def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.bind(**call).ainvoke([("system", system), *state["messages"]])]}

        return node

    graph = StateGraph(MessagesState)
    graph.add_node("researcher", agent("you find things out", forced_reply=finding))
    graph.add_node("critic", agent("you doubt what others have found out, and say so at length"))
    graph.add_edge(START, "researcher")
    graph.add_edge("researcher", "critic")
    result = await graph.compile().ainvoke({"messages": [("human", "graph: " + PARAGRAPH)]})  # pyright: ignore
    _, report, critique = result["messages"]
    assert [report.name, critique.name] == ["researcher", "critic"]
    assert report.content == finding
    reuse = [message.response_metadata["agentkv"] for message in (report, critique)]
    assert [sources["agent"] for sources in reuse] == ["researcher", "critic"]
    assert (reuse[0]["reused"], reuse[1]["segments"]) == (0, 2)
    assert reuse[1]["reused"] > 0.7 * critique.usage_metadata["input_tokens"]
    assert critique.usage_metadata["input_token_details"] == {"cache_read": reuse[1]["reused"] + reuse[1]["prefix"]}


def test_metrics_tell_the_sources(url: str, service: Service) -> None:
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    httpx.post(f"{url}/v1/chat/completions", json=ask(service, "x", "y", agent_hint="counted"), headers=headers)
    metrics_headers = {"Authorization": f"Bearer {METRICS_KEY.get_secret_value()}"}
    text = httpx.get(f"{url}/metrics", headers=metrics_headers).text
    assert 'agentkv_prompt_tokens_total{agent="counted",source="computed"}' in text
    (held,) = [line for line in text.splitlines() if line.startswith('agentkv_kv_bytes{tier="pool"}')]
    assert float(held.split()[1]) > 0
    assert "agentkv_time_to_first_token_seconds_count" in text
