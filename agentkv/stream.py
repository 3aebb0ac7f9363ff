"""The pieces of a reply on their way from the engine's thread to whoever reads them: a thread or a coroutine."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from agentkv.api import ChatDelta


class DeltaStream:
    """A `ChatStream` that the engine's thread fills. Leaving the loop early cancels the chat.

    Args:
        on_cancel: called once when the reader gives up before the end, from the reader's thread.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self._on_cancel = on_cancel
        self._lock = threading.Lock()
        self._items: deque[ChatDelta | BaseException] = deque()
        self._wake: Callable[[], None] = _nobody_waits
        self._ended = False

    def push(self, delta: ChatDelta) -> None:
        """Add a piece; the one with a finish reason is the last."""
        self._put(delta)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, raised where it is read."""
        self._put(error)

    def cancel(self) -> None:
        """See `ChatStream.cancel`."""
        with self._lock:
            if self._ended:
                return
        self._on_cancel()

    def __iter__(self) -> Iterator[ChatDelta]:
        ready = threading.Event()
        self._listen(ready.set)
        try:
            while True:
                ready.wait()
                ready.clear()
                for delta in self._take():
                    yield delta
                    if delta.finish_reason is not None:
                        return
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads any more
                loop.call_soon_threadsafe(ready.set)

        self._listen(wake)
        try:
            while True:
                await ready.wait()
                ready.clear()
                for delta in self._take():
                    yield delta
                    if delta.finish_reason is not None:
                        return
        finally:
            self.cancel()

    def _put(self, item: ChatDelta | BaseException) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = isinstance(item, BaseException) or item.finish_reason is not None
            self._items.append(item)
            wake = self._wake
        wake()

    def _listen(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if self._wake is not _nobody_waits:
                raise RuntimeError("a chat's stream can be read once: submit the chat again")
            self._wake = wake
            waiting = bool(self._items)
        if waiting:
            wake()

    def _take(self) -> Iterator[ChatDelta]:
        while True:
            with self._lock:
                if not self._items:
                    return
                item = self._items.popleft()
            if isinstance(item, BaseException):
                raise item
            yield item


def _nobody_waits() -> None:
    """The wake-up call before anybody listens."""
