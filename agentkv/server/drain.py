"""The server process: it serves until it is told to end, then lets running chats finish.

The first SIGTERM or SIGINT begins the drain: `/ready` says no at once and new chats are refused with 503, while the
listening socket stays open, so that a load balancer sees it. When nothing runs any more, or the grace is over, the
server closes. A second signal ends it now.
"""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn

from agentkv.server.gate import Gate

_logger = logging.getLogger("uvicorn.error")


class DrainingServer(uvicorn.Server):
    """uvicorn's server with a drain in front of its shutdown.

    Args:
        config: uvicorn's.
        gate: closed when the drain begins; knows how much still runs.
        grace: seconds that it may take.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, grace: float) -> None:
        super().__init__(config)
        self._gate = gate
        self._grace = grace
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """The first signal begins the drain, any later one ends everything now."""
        if self._gate.draining:
            self.should_exit = self.force_exit = True
        self._gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to shut down."""
        now = asyncio.get_running_loop().time()
        if self._gate.draining and self._deadline is None:
            self._deadline = now + self._grace
            _logger.info("Draining: %d requests run, %g s at most", self._gate.num_running, self._grace)
        if self._deadline is not None and (self._gate.num_running == 0 or now >= self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)


@contextlib.contextmanager
def late_signals_ignored() -> Iterator[None]:
    """A signal that comes while uvicorn's handlers are not (or no longer) there does not end the process before the
    caller has closed the service."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
