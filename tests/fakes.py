"""A `ChatService` that says what it is told to, and a real server around it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from starlette.types import ASGIApp

from agentkv.api import ChatDelta, ChatMessage, ChatRequest, Embedding, ReuseUsage, Usage
from agentkv.errors import InvalidRequest, ServiceClosed
from agentkv.segment_api import SegmentInfo, check_deletion
from agentkv.server.app import create_app
from agentkv.server.connection import connection_class
from agentkv.server.settings import ServerSettings

Script = Callable[[ChatRequest], Sequence[str | ChatDelta]]


def echo(request: ChatRequest) -> list[str]:
    """Repeat the last message, word by word."""
    last = request.messages[-1].content if request.messages else str(request.prompt)
    words = last.split(" ")
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)]


class FakeEmbedder:
    """Vectors that point along the text's length, in 4 dimensions; `hold` leaves them unfinished."""

    def __init__(self) -> None:
        self.hold = False
        self.fault: Exception | None = None
        self.futures: list[Future[Embedding]] = []

    def submit(self, inputs: Sequence[str | Sequence[int]], *, tenant: str = "") -> list["Future[Embedding]"]:
        futures = []
        for text in inputs:
            future: Future[Embedding] = Future()
            vector = np.asarray([len(text), 1, 2, 2], dtype=np.float32)
            if self.fault is not None:
                future.set_exception(self.fault)
            elif not self.hold:
                future.set_result(Embedding(vector=vector / np.linalg.norm(vector), num_tokens=len(text)))
            futures.append(future)
        self.futures += futures
        return futures


class FakeTexts:
    """A token a character."""

    def tokenize(self, text: str | Sequence[ChatMessage], *, tenant: str = "") -> tuple[int, ...]:
        whole = text if isinstance(text, str) else "".join(message.content for message in text)
        return tuple(map(ord, whole))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        if max(token_ids, default=0) > 0x10FFFF:
            raise InvalidRequest(f"{max(token_ids)} is no token id", param="tokens")
        return "".join(map(chr, token_ids))

    def names(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"<{token_id}>" for token_id in token_ids)


class FakeSegments:
    """Nothing is kept; what is to be deleted is recorded."""

    def __init__(self) -> None:
        self.deletions: list[dict[str, Any]] = []

    def list(self, *, tenant: str = "") -> tuple[SegmentInfo, ...]:
        return ()

    def pin(self, segment_id: str, *, tenant: str = "") -> None:
        raise InvalidRequest(f"no segment {segment_id!r}", param="segment", code="segment_not_found")

    def unpin(self, segment_id: str, *, tenant: str = "") -> bool:
        raise InvalidRequest(f"no segment {segment_id!r}", param="segment", code="segment_not_found")

    def delete(self, *, tenant: str = "", all: bool = False, **which: Any) -> int:
        check_deletion(*which.values(), all=all)
        given = {name: value for name, value in which.items() if value is not None}
        self.deletions += [given | ({"all": True} if all else {})] if which.get("segment_id") is None else []
        return 0


@dataclass(kw_only=True)
class FakeService:
    """Answers from a script, records what it was asked.

    Attributes:
        script: the pieces of the reply to a request: texts, or deltas where there is more than text.
        refuse: raised by `submit`.
        fail_after: pieces after which `failure` is raised in the stream.
        fails: which chats fail then.
        hold_after: pieces after which a stream waits until it is cancelled.
    """

    script: Script = echo
    model_id: str = "fake/model"
    context_length: int = 4096
    refuse: Exception | None = None
    fail_after: int | None = None
    fails: Callable[[ChatRequest], bool] = lambda _: True
    failure: Exception = field(default_factory=lambda: ServiceClosed("the engine failed"))
    hold_after: int | None = None
    status: str = "ok"
    requests: list[ChatRequest] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    streams: list["FakeStream"] = field(default_factory=list)
    embedder: FakeEmbedder = field(default_factory=FakeEmbedder)
    texts: FakeTexts = field(default_factory=FakeTexts)
    segments: FakeSegments = field(default_factory=FakeSegments)

    def submit(self, request: ChatRequest, *, tenant: str = "") -> "FakeStream":
        if self.refuse is not None:
            raise self.refuse
        self.requests.append(request)
        self.tenants.append(tenant)
        text = [request.forced_reply] if request.forced_reply is not None else list(self.script(request))
        stream = FakeStream(self, request, text[: request.max_tokens])
        self.streams.append(stream)
        return stream

    def count_tokens(self, request: ChatRequest, *, tenant: str = "") -> int:
        if self.refuse is not None:
            raise self.refuse
        self.requests.append(request)
        self.tenants.append(tenant)
        return sum(len(message.content) for message in request.messages)

    def health(self) -> dict[str, Any]:
        return {"status": self.status}

    def kv_bytes(self) -> dict[str, int]:
        if self.status != "ok":
            raise ServiceClosed("closed")
        return {"pool": 1024}

    def close(self) -> None:
        self.status = "closed"


class FakeStream:
    """The pieces of a script as deltas; a piece counts as a token."""

    def __init__(self, service: FakeService, request: ChatRequest, pieces: Sequence[str | ChatDelta]) -> None:
        self._service = service
        self._request = request
        self._pieces = pieces
        self.cancelled = threading.Event()
        self.ended = False

    def __iter__(self) -> Iterator[ChatDelta]:
        for index, piece in enumerate(self._pieces):
            if self._at(index):
                self.cancelled.wait()
            if self.cancelled.is_set():
                break
            yield piece if isinstance(piece, ChatDelta) else ChatDelta(text=piece, token_ids=(index,))
        self._at(len(self._pieces))
        self.ended = True
        yield self._last()

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        for index, piece in enumerate(self._pieces):
            if self._at(index):
                await asyncio.to_thread(self.cancelled.wait)
            await asyncio.sleep(0)
            if self.cancelled.is_set():
                break
            yield piece if isinstance(piece, ChatDelta) else ChatDelta(text=piece, token_ids=(index,))
        self._at(len(self._pieces))
        self.ended = True
        yield self._last()

    def cancel(self) -> None:
        self.cancelled.set()

    def _at(self, index: int) -> bool:
        """Raise if it is time to fail; whether it is time to hold."""
        failing = self._service.fail_after == index and self._service.fails(self._request)
        if failing and not self.cancelled.is_set():
            raise self._service.failure
        return self._service.hold_after == index

    def _last(self) -> ChatDelta:
        called = any(isinstance(piece, ChatDelta) and piece.tool_calls for piece in self._pieces)
        reason = "length" if self._request.max_tokens == len(self._pieces) else "tool_calls" if called else "stop"
        return ChatDelta(text="", finish_reason="abort" if self.cancelled.is_set() else reason, usage=self.usage())

    def usage(self) -> Usage:
        """One token a character of the prompt: a quarter each of prefix, reused, repaired; the rest computed."""
        count = sum(len(message.content) for message in self._request.messages)
        quarter = count // 4
        reuse = ReuseUsage(
            prefix=quarter,
            reused=quarter,
            repaired=quarter,
            computed=count - 3 * quarter,
            segments=2,
            row_layers=count * 2,
            full_row_layers=count * 4,
            selector=self._request.selector or "",
            agent=self._request.agent or "hash-of-system",
            authors={"researcher": quarter} if quarter else {},
            misses={"too_short": 1},
        )
        return Usage(
            prompt_tokens=count, completion_tokens=len(self._pieces), reuse=reuse, queue=0.125, ttft=0.25, duration=0.5
        )


@contextlib.contextmanager
def running_app(app: ASGIApp, settings: ServerSettings | None = None) -> Iterator[str]:
    """A uvicorn server on a free loopback port, in a thread; gives its URL."""
    settings = settings or ServerSettings()
    http = connection_class(settings.read_timeout, settings.write_timeout)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=2, http=http)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="test-server")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start: see its log"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def running_server(
    service: FakeService, settings: ServerSettings | None = None
) -> contextlib.AbstractContextManager[str]:
    """agentkv's server over `service`."""
    return running_app(create_app(service, settings), settings)


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether the condition comes true within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()
