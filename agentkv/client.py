"""The service behind a URL: the same `ChatService`, over HTTP.

Every chat is streamed on the wire, whatever the caller does with the deltas. Errors of the server surface as the typed
errors that an embedded service raises; what has to do with the way there is a `RemoteError`.
"""

import asyncio
import contextlib
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from agentkv.api import ChatDelta, ChatRequest
from agentkv.errors import AgentKVError, ConfigError, InvalidRequest, RemoteError, ServiceClosed
from agentkv.remote_segments import RemoteSegments, RemoteTexts
from agentkv.wire import EventReader, chat_body, refused, served_model


class Client:
    """Chats with an agentkv server. Safe to share between threads and event loops.

    Args:
        base_url: e.g. `http://127.0.0.1:8000`, with or without `/v1`.
        api_key: sent as a bearer token; it is also the tenant.
        model: name of the served model; None asks the server, once.
        timeout: longest silence in seconds, so also the longest wait for the first token.

    Attributes:
        segments: what the server keeps of this key's chats.
        texts: texts to tokens.

    Raises:
        ConfigError: a `base_url` that is none.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, model: str | None = None, timeout: float = 600.0
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url is {base_url!r}: give one like http://127.0.0.1:8000")
        self._settings: dict[str, Any] = {
            "base_url": base_url.rstrip("/").removesuffix("/v1"),
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),  # the server sets the limit
            "verify": httpx.create_ssl_context(),
        }
        self._model = model
        self._closed = False
        self._streams: weakref.WeakSet[RemoteStream] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._http = httpx.Client(**self._settings)
        self.segments = RemoteSegments(self._ask)
        self.texts = RemoteTexts(self._ask)
        # Its sockets are closed with this object, also where nobody calls `close` (a chat model in a notebook).
        self._close_http = weakref.finalize(self, self._http.close)

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The JSON that the server answers to a short request.

        Raises:
            AgentKVError: what it refuses, or why there is no answer.
            ServiceClosed: this client was closed.
        """
        if self._closed:
            raise ServiceClosed("this client was closed: make a new one")
        with self.errors():
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise refused(response)
        return response.json()

    @property
    def base_url(self) -> str:
        """The server's root."""
        return self._settings["base_url"]

    @property
    def model_id(self) -> str:
        """The served model.

        Raises:
            RemoteError: the server has to be asked and does not answer.
            ServiceClosed: it has to be asked, but this client was closed.
        """
        if self._model is None and self._closed:
            raise ServiceClosed("this client was closed: make a new one")
        if self._model is None:
            with self.errors():
                self._model = served_model(self._http.get("/v1/models"))
        return self._model

    def submit(self, request: ChatRequest, *, tenant: str = "") -> "RemoteStream":
        """Prepare a chat; it is sent when its iteration begins, and the server's errors are raised there.

        Raises:
            InvalidRequest: a field that does not travel.
            ServiceClosed: this client was closed.
        """
        if tenant:
            raise InvalidRequest("a remote tenant can't be chosen: it is the API key's, see `api_key`", param="tenant")
        if request.forced_reply is not None:
            raise InvalidRequest("forced_reply works in process only: use a `Service`", param="forced_reply")
        if request.return_logits:
            raise InvalidRequest("return_logits works in process only: use a `Service`", param="return_logits")
        stream = RemoteStream(self, request)
        with self._lock:
            if self._closed:
                raise ServiceClosed("this client was closed: make a new one")
            self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Close all connections; running chats end with `ServiceClosed`."""
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        self._close_http()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def open(self, request: ChatRequest) -> Iterator[httpx.Response]:
        """Send a chat from a thread."""
        body = chat_body(request, self.model_id)
        with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
                raise refused(response)
            yield response

    @contextlib.asynccontextmanager
    async def aopen(self, request: ChatRequest) -> AsyncIterator[httpx.Response]:
        """Send a chat from a coroutine.

        Over a connection of its own: a pool would belong to one event loop, and callers run several (`asyncio.run`).
        """
        async with httpx.AsyncClient(**self._settings) as http:
            if self._model is None:
                self._model = served_model(await http.get("/v1/models"))
            body = chat_body(request, self._model)
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise refused(response)
                yield response

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn httpx's errors into `RemoteError`s that say what to do."""
        try:
            yield
        except UnicodeEncodeError as error:
            message = f"the messages hold a character that no encoding has, {error.object[error.start]!r}: leave it out"
            raise InvalidRequest(message, param="messages") from error
        except httpx.TimeoutException as error:
            limits = self._settings["timeout"]
            message = f"{self.base_url} was silent for too long ({limits}): raise `timeout`, or ask for less"
            raise RemoteError(message, code="timeout") from error
        except httpx.ConnectError as error:
            message = f"no server answers at {self.base_url} ({error}): start one with `agentkv serve`, check base_url"
            raise RemoteError(message, code="unreachable") from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            message = f"the connection to {self.base_url} broke ({error!r}): ask again, and see the server's log"
            raise RemoteError(message, code="connection_broken") from error


class RemoteStream:
    """A chat on a server; see `agentkv.api.ChatStream`. Token ids and logits do not travel."""

    def __init__(self, client: Client, request: ChatRequest) -> None:
        self._client = client
        self._request = request
        self._events = EventReader()
        self._hang_up: Callable[[], object] = lambda: None
        self._started = False
        self._cancelled = False

    def __iter__(self) -> Iterator[ChatDelta]:
        if self._start():
            with self._errors(), self._client.open(self._request) as response:
                self._hang_up = lambda: _shut_down(response)
                for line in response.iter_lines():
                    if self._cancelled:
                        break
                    if delta := self._events.read(line):
                        yield delta
        if not self._events.complete:
            yield self._abort()

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        if self._start():
            lines: asyncio.Queue[str | None] = asyncio.Queue()
            # A task of its own, so that it can be cancelled without the reader's.
            receiving = asyncio.create_task(self._receive(lines))
            loop = asyncio.get_running_loop()
            self._hang_up = lambda: loop.call_soon_threadsafe(receiving.cancel)
            try:
                while (line := await lines.get()) is not None:
                    if delta := self._events.read(line):
                        yield delta
                await asyncio.wait([receiving])
                with self._errors():
                    _ = receiving.cancelled() or receiving.result()
            finally:
                self._hang_up = lambda: None
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)
        if not self._events.complete:
            yield self._abort()

    async def _receive(self, lines: asyncio.Queue[str | None]) -> None:
        try:
            async with self._client.aopen(self._request) as response:
                async for line in response.aiter_lines():
                    lines.put_nowait(line)
        finally:
            lines.put_nowait(None)

    def cancel(self) -> None:
        """Hang up; the server then aborts the chat. Safe at any time, from any thread."""
        self._cancelled = True
        self._hang_up()

    def _start(self) -> bool:
        """Whether there is anything to send."""
        if self._started:
            raise RuntimeError("a chat's stream can be iterated once: submit the request again")
        self._started = True
        return not self._cancelled

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Typed errors; none after a cancel, which breaks the connection under the reader."""
        try:
            with self._client.errors():
                yield
        except AgentKVError:
            if not self._cancelled:
                raise

    def _abort(self) -> ChatDelta:
        if self._client.closed:
            raise ServiceClosed("this client was closed while the chat ran")
        if not self._cancelled:
            raise RemoteError(f"{self._client.base_url} ended the reply too early: see its log", code="incomplete")
        return ChatDelta(text="", finish_reason="abort")


def _shut_down(response: httpx.Response) -> None:
    """End a connection under the thread that waits for its data; closing the descriptor would not wake it."""
    network = response.extensions.get("network_stream")
    sock = network.get_extra_info("socket") if network is not None else None
    if sock is not None:
        with contextlib.suppress(OSError):  # it has ended already
            sock.shutdown(socket.SHUT_RDWR)
