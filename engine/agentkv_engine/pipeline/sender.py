"""Sends a stage's answers, in a thread of its own: it may wait for the device, the one that computes must not."""

import queue
import threading
from collections.abc import Callable

import torch
import zmq

from agentkv_engine.pipeline.messages import Answer, encode

CLOSE_SECONDS = 2.0

Later = Callable[[], Answer]
"""An answer that has to be waited for."""


class Sender:
    """Sends answers in the order in which they are given.

    Args:
        socket: to the driver; this thread's from now on, until `close`.
        device: that answers are made on.
        failed: told what making an answer raised.
    """

    def __init__(self, socket: zmq.Socket[bytes], device: str, failed: Callable[[Exception], None]) -> None:
        self._socket = socket
        self._device = torch.device(device)
        self._failed = failed
        self._waiting: queue.SimpleQueue[Answer | Later | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="agentkv-answers", daemon=True)
        self._thread.start()

    def send(self, answer: Answer | Later) -> None:
        """Send this when those before are sent."""
        self._waiting.put(answer)

    def close(self) -> None:
        """Let everything leave, unless the device hangs."""
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while (answer := self._waiting.get()) is not None:
            try:
                self._socket.send(encode(answer() if callable(answer) else answer))
            except Exception as error:
                self._failed(error)
