"""`ChatAgentKV` on a service in this process and on a server: the same calls, the same answers."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk, HumanMessage
from pydantic import ValidationError

from agentkv.api import ChatDelta, Reuse
from agentkv.errors import ContextTooLong, InvalidRequest, RemoteError
from agentkv.sampling import Sampling, TokenLogprob
from agentkv.server.settings import ServerSettings
from fakes import FakeService, running_server
from langchain_agentkv import ChatAgentKV

SHARED = FakeService()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SHARED, ServerSettings(api_keys=("key",))) as url:
        yield url


@pytest.fixture
def service() -> FakeService:
    SHARED.__dict__.update(FakeService().__dict__)
    return SHARED


@pytest.fixture(params=["service", "url"])
def where(request: pytest.FixtureRequest, url: str, service: FakeService) -> dict[str, Any]:
    """How the model reaches the service."""
    return {"service": service} if request.param == "service" else {"base_url": url, "api_key": "key"}


PROMPT = [("system", "be brief"), ("human", "one two three")]
EXPECTED_USAGE = {
    "input_tokens": 21,
    "output_tokens": 3,
    "total_tokens": 24,
    "input_token_details": {"cache_read": 10},
}


def summed(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


def test_invoke(where: dict[str, Any]) -> None:
    reply = ChatAgentKV(**where).invoke(PROMPT)
    assert (reply.content, reply.name) == ("one two three", None)
    assert reply.usage_metadata == EXPECTED_USAGE
    metadata = reply.response_metadata
    assert (metadata["finish_reason"], metadata["model_name"]) == ("stop", "fake/model")
    assert metadata["agentkv"]["repaired"] == 5
    assert metadata["agentkv"]["full_row_layers"] == 84


async def test_ainvoke_and_batches(where: dict[str, Any]) -> None:
    model = ChatAgentKV(**where)
    assert (await model.ainvoke(PROMPT)).usage_metadata == EXPECTED_USAGE
    replies = await model.abatch([f"n {n}" for n in range(10)])
    assert [reply.content for reply in replies] == [f"n {n}" for n in range(10)]


async def test_streams(where: dict[str, Any]) -> None:
    model = ChatAgentKV(**where)
    for chunks in (list(model.stream(PROMPT)), [chunk async for chunk in model.astream(PROMPT)]):
        assert [chunk.content for chunk in chunks] == ["one", " two", " three", ""]
        assert chunks[-1].chunk_position == "last"
        total = summed(chunks)
        assert (total.content, total.usage_metadata) == ("one two three", EXPECTED_USAGE)
        assert total.response_metadata["finish_reason"] == "stop"


def test_fields_and_calls_reach_the_request(where: dict[str, Any], service: FakeService) -> None:
    model = ChatAgentKV(
        **where, max_tokens=9, temperature=0.5, seed=3, stop=["X"], selector="repair_none", cache_salt="s", agent="a"
    )
    model.invoke("hi")
    model.bind(max_tokens=2, temperature=0.0, reuse="screened", agent="b").invoke("hi you there", stop=["Y"])
    first, second = service.requests
    assert (first.max_tokens, first.temperature, first.seed, first.stop) == (9, 0.5, 3, ("X",))
    assert (first.selector, first.cache_salt, first.agent, first.reuse) == ("repair_none", "s", "a", None)
    assert (second.max_tokens, second.temperature, second.seed, second.stop) == (2, 0.0, 3, ("Y",))
    assert (second.reuse, second.agent) == (Reuse.SCREENED, "b")


def test_the_label_comes_from_the_run(where: dict[str, Any], service: FakeService) -> None:
    model = ChatAgentKV(**where)
    config: Any = {"metadata": {"lc_agent_name": "critic"}}
    assert model.invoke("hi", config).name == "critic"
    assert {chunk.name for chunk in model.stream("hi", config)} == {"critic"}
    assert model.with_config(config).invoke("hi").name == "critic"
    assert ChatAgentKV(**where, agent="own").invoke("hi", config).name == "own"
    assert [request.agent for request in service.requests] == ["critic", "critic", "critic", "own"]


async def test_the_label_comes_from_the_run_async(where: dict[str, Any], service: FakeService) -> None:
    model = ChatAgentKV(**where)
    config: Any = {"metadata": {"lc_agent_name": "critic"}}
    assert (await model.ainvoke("hi", config)).name == "critic"
    assert {chunk.name async for chunk in model.astream("hi", config)} == {"critic"}
    assert [request.agent for request in service.requests] == ["critic", "critic"]


@pytest.mark.parametrize(
    "call",
    [
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "any"},
        {"nonsense": 0.5},
        {"response_format": {}},
        {"reuse": "maybe"},
    ],
)
def test_keywords_that_cannot_be_honoured_are_refused_by_name(service: FakeService, call: dict[str, Any]) -> None:
    (name,) = call
    with pytest.raises(InvalidRequest, match=name) as caught:
        ChatAgentKV(service=service).bind(**call).invoke("hi")
    assert caught.value.param == name
    assert not service.requests


def test_forced_replies_in_process_and_not_remote(url: str, service: FakeService) -> None:
    forced = ChatAgentKV(service=service).bind(forced_reply="as told").invoke("hi")
    assert forced.content == "as told"
    assert service.requests[0].forced_reply == "as told"
    with pytest.raises(InvalidRequest, match="in process only"):
        ChatAgentKV(base_url=url, api_key="key").invoke("hi", forced_reply="as told")  # pyright: ignore


async def test_errors_of_the_service_surface_typed(where: dict[str, Any], service: FakeService) -> None:
    model = ChatAgentKV(**where)
    service.refuse = ContextTooLong("9 tokens, 8 fit")
    with pytest.raises(ContextTooLong):
        model.invoke("hi")
    with pytest.raises(ContextTooLong):
        await model.ainvoke("hi")
    with pytest.raises(ContextTooLong):
        list(model.stream("hi"))


def test_a_wrong_key_is_a_remote_error(url: str, service: FakeService) -> None:
    with pytest.raises(RemoteError, match="not known"):
        ChatAgentKV(base_url=url, api_key="wrong").invoke("hi")  # pyright: ignore


def test_leaving_a_stream_cancels_the_chat(service: FakeService) -> None:
    service.hold_after = 1
    stream = ChatAgentKV(service=service).stream("one two")
    assert next(stream).content == "one"
    stream.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    assert service.streams[0].cancelled.is_set()


class Tokens(BaseCallbackHandler):
    """Records what a handler sees of a stream."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.seen.append(token)


def test_callbacks_see_each_token_once(where: dict[str, Any]) -> None:
    handler = Tokens()
    list(ChatAgentKV(**where).stream("one two", {"callbacks": [handler]}))
    assert handler.seen == ["one", " two", ""]


@pytest.mark.parametrize("fields", [{}, {"base_url": "http://x", "service": SHARED}, {"service": SHARED, "nope": 1}])
def test_there_is_one_service(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatAgentKV(**fields)


def test_the_key_is_not_shown(url: str) -> None:
    model = ChatAgentKV(base_url=url, api_key="very-secret")  # pyright: ignore
    assert "very-secret" not in repr(model) + str(model.model_dump()) + str(model._identifying_params)


def test_messages_keep_their_authors(where: dict[str, Any], service: FakeService) -> None:
    model = ChatAgentKV(**where)
    config: Any = {"metadata": {"lc_agent_name": "researcher"}}
    report = model.invoke("find out", config)
    model.invoke([HumanMessage("task", name="alice"), report])
    assert [message.name for message in service.requests[-1].messages] == ["alice", "researcher"]


def test_importing_needs_neither_torch_nor_the_server() -> None:
    code = (
        "import sys, langchain_agentkv;"
        "print(*sorted({'torch', 'fastapi', 'uvicorn', 'agentkv_engine', 'agentkv.service'} & set(sys.modules)))"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == ""


def test_sampling_parameters(service: FakeService) -> None:
    model = ChatAgentKV(service=service, top_p=0.5, top_k=3, logit_bias={7: -1.0}, presence_penalty=0.5)
    model.invoke("hi")
    model.invoke("hi", top_p=0.9, logprobs=True)
    model.invoke("hi", top_logprobs=2)
    first, second, third = (request.sampling for request in service.requests)
    assert first == Sampling(top_p=0.5, top_k=3, logit_bias={7: -1.0}, presence_penalty=0.5)
    assert (second.top_p, second.logprobs, third.logprobs) == (0.9, 0, 2)


def test_log_probabilities_add_up(service: FakeService) -> None:
    tokens = [TokenLogprob(token=text, utf8=text.encode(), logprob=-1.0) for text in ("a", "b")]
    service.script = lambda _: [ChatDelta(text=token.token, logprobs=(token,)) for token in tokens]
    reply = ChatAgentKV(service=service).invoke("hi", logprobs=True)
    assert [token["token"] for token in reply.response_metadata["logprobs"]["content"]] == ["a", "b"]
