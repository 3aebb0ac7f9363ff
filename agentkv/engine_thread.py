"""The thread that owns the engine: runs what is posted to it, and steps while there is work."""

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from agentkv.errors import ServiceClosed
from agentkv_engine.engine import Engine
from agentkv_engine.request import StepOutput

T = TypeVar("T")


class EngineThread:
    """Serialises all calls of one engine.

    Args:
        engine: touched by this thread only from now on.
        on_outputs: called in the thread with what each step brought.
        on_failure: called in the thread, once, when the engine raised: nothing runs after it.
    """

    def __init__(
        self, engine: Engine, on_outputs: Callable[[list[StepOutput]], None], on_failure: Callable[[Exception], None]
    ) -> None:
        self._engine = engine
        self._on_outputs = on_outputs
        self._on_failure = on_failure
        self._posted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="agentkv-engine", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether calls are still taken."""
        return not self._closed

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` in the thread, between two steps.

        Raises:
            ServiceClosed: the thread has ended.
        """
        with self._lock:
            if self._closed:
                raise ServiceClosed("the service is closed: start it again")
            self._posted.put(call)
        self._engine.interrupt()

    def ask(self, question: Callable[[Engine], T]) -> T:
        """The answer of the engine, from the thread; waits for the step under way.

        Raises:
            ServiceClosed: the thread has ended.
        """
        future: Future[T] = Future()

        def answer() -> None:
            try:
                future.set_result(question(self._engine))
            except Exception as error:
                future.set_exception(error)

        self.post(answer)
        return future.result()

    def close(self) -> None:
        """Take no more calls, run what was posted, and end. Safe to call twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._posted.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._run_posted():
                self._on_outputs(self._engine.step())
        except Exception as error:
            with self._lock:
                self._closed = True
            self._drain()
            self._on_failure(error)

    def _run_posted(self) -> bool:
        """Run what was posted; sleep while there is nothing to do. False when the thread is to end."""
        while not self._posted.empty() or not self._engine.has_work:
            if not self._engine.has_work:  # also where a call has just ended the last: an idle engine pins nothing
                self._engine.release_finished()
            call = self._posted.get()
            if call is None:
                return False
            call()
        return True

    def _drain(self) -> None:
        """Run what was posted before the failure: asked questions must not hang, and chats that came in are failed."""
        while not self._posted.empty():
            call = self._posted.get()
            with contextlib.suppress(Exception):  # the failure that counts is the one under way
                if call is not None:
                    call()
