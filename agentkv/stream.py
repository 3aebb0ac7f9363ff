"""The pieces of a reply on their way from the engine's thread to whoever reads them: a thread or a coroutine."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from agentkv.api import ChatDelta


class WakeUps:
    """Calls into event loops: those that one thread holds back go out together, one a loop. Each costs the thread that
    makes it a system call and its turn at the interpreter."""

    def __init__(self) -> None:
        self._holder: int | None = None
        self._held: dict[asyncio.AbstractEventLoop, list[Callable[[], object]]] = {}

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Hold what this thread calls until the block ends, or until `flush`."""
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self._holder = None
            self.flush()

    def flush(self, *, aside: float = 0.0) -> None:
        """Send what is held: something that takes a while follows. Called by the thread that holds it.

        Args:
            aside: seconds that this thread then leaves the interpreter to the loops, if it woke any.
        """
        held, self._held = self._held, {}
        for loop, calls in held.items():
            _call_in(loop, lambda calls=calls: [call() for call in calls])
        if held and aside:
            time.sleep(aside)

    def call(self, loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
        """Call something in a loop, soon."""
        if self._holder == threading.get_ident():
            self._held.setdefault(loop, []).append(call)
        else:
            _call_in(loop, call)


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads any more
        loop.call_soon_threadsafe(call)


class DeltaStream:
    """A `ChatStream` that the engine's thread fills. Leaving the loop early cancels the chat.

    Args:
        on_cancel: called once when the reader gives up before the end, from the reader's thread.
        wake_ups: how coroutines that read are woken.
    """

    def __init__(self, on_cancel: Callable[[], None], wake_ups: WakeUps | None = None) -> None:
        self._on_cancel = on_cancel
        self._wake_ups = wake_ups or WakeUps()
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
        self._listen(lambda: self._wake_ups.call(loop, ready.set))
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
