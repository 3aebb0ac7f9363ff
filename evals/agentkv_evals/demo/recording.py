"""A service that takes down what it was asked and what it answered, so that the same can be asked again."""

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from agentkv.api import ChatDelta, ChatRequest, ChatService, ChatStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request and the reply to it."""

    request: ChatRequest
    reply: str


class RecordingService:
    """Passes everything on to a `ChatService`; chats that ended by themselves are in `exchanges`, by agent label.

    Args:
        service: answers; stays the caller's to close.
    """

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self.exchanges: dict[str, Exchange] = {}

    @property
    def model_id(self) -> str:
        """See `ChatService`."""
        return self._service.model_id

    def submit(self, request: ChatRequest, *, tenant: str = "") -> ChatStream:
        """See `ChatService`."""
        return _RecordingStream(self, request, self._service.submit(request, tenant=tenant))

    def close(self) -> None:
        """See `ChatService`."""
        self._service.close()

    def record(self, request: ChatRequest, reply: str) -> None:
        """Take down an exchange. Agents run in threads."""
        with self._lock:
            self.exchanges[request.agent or ""] = Exchange(request=request, reply=reply)


class _RecordingStream:
    def __init__(self, service: RecordingService, request: ChatRequest, stream: ChatStream) -> None:
        self._service = service
        self._request = request
        self._stream = stream
        self._text = ""

    def __iter__(self) -> Iterator[ChatDelta]:
        for delta in self._stream:
            self._note(delta)
            yield delta

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        async for delta in self._stream:
            self._note(delta)
            yield delta

    def cancel(self) -> None:
        """See `ChatStream`."""
        self._stream.cancel()

    def _note(self, delta: ChatDelta) -> None:
        self._text += delta.text
        if delta.finish_reason is not None:
            self._service.record(self._request, self._text)
