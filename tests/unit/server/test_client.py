"""The client: what goes over the wire comes back whole, and every way to fail is a typed error with a remedy."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from agentkv.api import ChatDelta, ChatMessage, ChatRequest, ChatStream, Reuse
from agentkv.client import Client
from agentkv.errors import (
    AgentKVError,
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    RemoteError,
    ServiceClosed,
    TemplateRefused,
)
from agentkv.remote_segments import RemoteSegments
from agentkv.server.settings import ServerSettings
from fakes import FakeService, eventually, running_app, running_server

REQUEST = ChatRequest(
    messages=(
        ChatMessage(role="system", content="you \u2028 are"),
        ChatMessage(role="assistant", content="火 \U0001f600 one two", name="critic"),
    ),
    max_tokens=50,
    temperature=0.5,
    stop=("END", "\n\n"),
    seed=7,
    reuse=Reuse.SCREENED,
    selector="repair_boundary(8)",
    agent="writer",
    thread="thread 1",
    cache_salt="salt",
)


def hello(text: str = "one two three") -> ChatRequest:
    return ChatRequest(messages=(ChatMessage(role="user", content=text),))


async def collect(stream: ChatStream) -> list[ChatDelta]:
    return [delta async for delta in stream]


@pytest.fixture
def client(shared_url: str, service: FakeService):
    with Client(shared_url, timeout=10) as client:
        yield client


def test_a_request_arrives_as_it_was_sent(client: Client, service: FakeService) -> None:
    list(client.submit(REQUEST))
    list(client.submit(hello()))
    assert service.requests == [REQUEST, hello()]


def test_sync_and_async_give_the_deltas_of_the_service(client: Client, service: FakeService) -> None:
    direct = [(delta.text, delta.finish_reason, delta.usage) for delta in service.submit(REQUEST)]
    for deltas in (list(client.submit(REQUEST)), asyncio.run(collect(client.submit(REQUEST)))):
        assert [(delta.text, delta.finish_reason, delta.usage) for delta in deltas] == direct


def test_one_client_serves_several_event_loops_and_threads(client: Client, service: FakeService) -> None:
    texts: list[str] = []

    def ask(index: int) -> None:
        stream = client.submit(hello(f"thread {index}"))
        deltas = asyncio.run(collect(stream)) if index % 2 else list(stream)
        texts.append("".join(delta.text for delta in deltas))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == sorted(f"thread {index}" for index in range(12))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_base_urls_with_and_without_v1(shared_url: str, service: FakeService, suffix: str) -> None:
    with Client(shared_url + suffix) as client:
        assert client.model_id == "fake/model"
        assert list(client.submit(hello()))[-1].finish_reason == "stop"


def test_a_named_model_is_not_asked_for(shared_url: str, service: FakeService) -> None:
    with Client(shared_url, model="other") as client:
        assert client.model_id == "other"
        with pytest.raises(RemoteError, match="fake/model") as caught:
            list(client.submit(hello()))
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_the_key_is_sent(service: FakeService) -> None:
    with running_server(service, ServerSettings(api_keys=("k",))) as url:
        with Client(url, api_key="k") as client:
            assert list(client.submit(hello()))[-1].finish_reason == "stop"
        with Client(url) as client, pytest.raises(RemoteError, match="no API key") as caught:
            list(client.submit(hello()))
    assert caught.value.status == 401


@pytest.mark.parametrize(
    "error",
    [
        ContextTooLong("9 tokens, 8 fit"),
        TemplateRefused("roles must alternate"),
        InvalidRequest("no such rule", param="selector", code="unknown_selector"),
        ServiceClosed("the engine failed"),
    ],
)
def test_errors_of_the_service_keep_their_type(client: Client, service: FakeService, error: AgentKVError) -> None:
    service.refuse = error
    for ask in (lambda: list(client.submit(hello())), lambda: asyncio.run(collect(client.submit(hello())))):
        with pytest.raises(type(error), match=str(error)) as caught:
            ask()
        assert type(caught.value) is type(error)
        assert vars(caught.value) == vars(error)


def test_a_failure_in_the_stream_comes_after_its_text(client: Client, service: FakeService) -> None:
    service.fail_after = 2
    texts: list[str] = []
    with pytest.raises(ServiceClosed, match="the engine failed"):
        texts.extend(delta.text for delta in client.submit(hello()))
    stream = iter(client.submit(hello()))
    assert [next(stream).text, next(stream).text] == ["one", " two"]
    with pytest.raises(ServiceClosed):
        next(stream)


def test_cancel_from_another_thread_wakes_a_waiting_reader(client: Client, service: FakeService) -> None:
    service.hold_after = 1
    stream = client.submit(hello())
    deltas = iter(stream)
    assert next(deltas).text == "one"
    threading.Timer(0.05, stream.cancel).start()
    started = time.monotonic()
    assert [(delta.text, delta.finish_reason) for delta in deltas] == [("", "abort")]
    assert time.monotonic() - started < 3
    assert eventually(lambda: service.streams[0].ended)
    assert service.streams[0].cancelled.is_set()


async def test_cancel_from_the_event_loop(client: Client, service: FakeService) -> None:
    service.hold_after = 1
    stream = client.submit(hello())
    deltas = aiter(stream)
    assert (await anext(deltas)).text == "one"
    asyncio.get_running_loop().call_later(0.05, stream.cancel)
    assert [(delta.text, delta.finish_reason) async for delta in deltas] == [("", "abort")]
    assert await asyncio.to_thread(eventually, lambda: service.streams[0].ended)


async def test_a_cancelled_task_hangs_up(client: Client, service: FakeService) -> None:
    service.hold_after = 0
    task = asyncio.create_task(collect(client.submit(hello())))
    assert await asyncio.to_thread(eventually, lambda: bool(service.streams))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(eventually, service.streams[0].cancelled.is_set)


def test_leaving_the_loop_early_hangs_up(client: Client, service: FakeService) -> None:
    service.hold_after = 1
    for delta in client.submit(hello()):
        assert delta.text == "one"
        break
    gc.collect()
    assert eventually(service.streams[0].cancelled.is_set)


def test_cancelled_before_it_began_nothing_is_sent(client: Client, service: FakeService) -> None:
    stream = client.submit(hello())
    stream.cancel()
    assert [delta.finish_reason for delta in stream] == ["abort"]
    with pytest.raises(RuntimeError, match="once"):
        list(stream)
    assert not service.requests


def test_close_ends_running_chats(shared_url: str, service: FakeService) -> None:
    service.hold_after = 1
    client = Client(shared_url)
    running, waiting = iter(client.submit(hello())), client.submit(hello())
    next(running)
    client.close()
    for stream in (running, waiting):
        with pytest.raises(ServiceClosed):
            list(stream)
    with pytest.raises(ServiceClosed):
        client.submit(hello())
    unused = Client(shared_url)
    unused.close()
    with pytest.raises(ServiceClosed):
        _ = unused.model_id


@pytest.mark.parametrize(
    ("request_", "tenant", "param"),
    [
        (ChatRequest(messages=REQUEST.messages, forced_reply="x"), "", "forced_reply"),
        (ChatRequest(messages=REQUEST.messages, return_logits=True), "", "return_logits"),
        (REQUEST, "mine", "tenant"),
    ],
)
def test_what_does_not_travel_is_refused(client: Client, request_: ChatRequest, tenant: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match=param) as caught:
        client.submit(request_, tenant=tenant)
    assert caught.value.param == param


def test_text_that_no_encoding_has_is_the_callers_mistake(client: Client) -> None:
    for run in (list, lambda stream: asyncio.run(collect(stream))):
        with pytest.raises(InvalidRequest, match="ud800"):
            run(client.submit(hello("broken \ud800")))


def test_a_base_url_without_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="localhost:8000"):
        Client("localhost:8000")


def failing_app() -> FastAPI:
    """Servers that are not agentkv, one a first path component."""
    app = FastAPI()

    async def half() -> AsyncIterator[str]:
        yield 'data: {"choices": [{"delta": {"content": "ha"}, "finish_reason": null}]}\n\n'

    async def silent() -> AsyncIterator[str]:
        yield ": still here\n\n"
        await asyncio.sleep(30)

    async def broken() -> AsyncIterator[str]:
        async for event in half():
            yield event
        raise RuntimeError("the connection breaks")

    @app.post("/{kind}/v1/chat/completions")
    async def answer(kind: str) -> Response:
        match kind:
            case "html":
                return PlainTextResponse("<html>Bad gateway</html>", status_code=502)
            case "list":
                return PlainTextResponse('["error"]', status_code=400)
            case "nonsense":
                return StreamingResponse(iter(["data: hello\n\n"]))
            case "shape":
                return StreamingResponse(iter(['data: {"choices": [{}]}\n\n']))
            case "half":
                return StreamingResponse(half())
            case "broken":
                return StreamingResponse(broken())
            case _:
                return StreamingResponse(silent())

    return app


@pytest.fixture(scope="module")
def failing_url():
    with running_app(failing_app()) as url:
        yield url


@pytest.mark.parametrize(
    ("kind", "status", "code", "words"),
    [
        ("html", 502, "bad_envelope", "Bad gateway"),
        ("list", 400, "bad_envelope", "base_url"),
        ("nonsense", None, "bad_event", "hello"),
        ("shape", None, "bad_event", "choices"),
        ("half", None, "incomplete", "too early"),
        ("broken", None, "connection_broken", "broke"),
        ("silent", None, "timeout", "timeout"),
    ],
)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_other_servers_and_broken_ones(
    failing_url: str, kind: str, status: int | None, code: str, words: str, mode: str
) -> None:
    with Client(f"{failing_url}/{kind}", model="m", timeout=0.3) as client:
        stream = client.submit(hello())
        with pytest.raises(RemoteError, match=words) as caught:
            list(stream) if mode == "sync" else asyncio.run(collect(stream))
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_nobody_there(mode: str) -> None:
    with Client("http://127.0.0.1:9", timeout=5) as client:
        stream = client.submit(hello())
        with pytest.raises(RemoteError, match="agentkv serve") as caught:
            list(stream) if mode == "sync" else asyncio.run(collect(stream))
    assert (caught.value.status, caught.value.code) == (None, "unreachable")


def test_the_client_needs_neither_torch_nor_a_server() -> None:
    code = (
        "import sys, agentkv.client;"
        "print(*sorted({'torch', 'transformers', 'fastapi', 'uvicorn', 'agentkv_engine'} & set(sys.modules)))"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == ""


def test_segments_of_a_server_that_tells_no_tiers() -> None:
    told = {"segment_id": "1", "text": "x", "tokens": 16, "num_bytes": 1, "pinned": False, "exact": True, "author": "a"}
    told |= {"threads": ["t"], "created": 0.0, "last_read": 0.0, "reads": 0}
    answers = [{**told, "tiers": ["pool", "host"]}, told]
    both, earlier = RemoteSegments(lambda *_: {"data": answers}).list()
    assert (both.tiers, earlier.tiers, earlier.threads) == (("pool", "host"), (), ("t",))
