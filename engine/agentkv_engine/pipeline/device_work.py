"""A stage's device as its threads see it: what runs beside a step, and when a step was done.

A GPU runs behind its host. What comes out of a step is waited for by the thread that sends it, on a stream of its own,
while the thread that computes launches the next one.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

OFFSETS_KEPT = 256


class DeviceWork(Protocol):
    """Marks points in a device's work."""

    def mark(self) -> Any:
        """The point behind all that was launched so far by the thread that computes."""
        ...

    def time_of(self, mark: Any) -> float:
        """When the device got there, as `time.monotonic()`; waits until it has."""
        ...

    @contextmanager
    def behind(self, mark: Any) -> Iterator[None]:
        """What is launched in here runs behind a mark, beside later steps, and is over at the end."""
        ...


class HostWork:
    """A CPU: what was launched has been done. Implements `DeviceWork`."""

    def mark(self) -> float:
        """See `DeviceWork.mark`."""
        return time.monotonic()

    def time_of(self, mark: float) -> float:
        """See `DeviceWork.time_of`."""
        return mark

    @contextmanager
    def behind(self, mark: float) -> Iterator[None]:  # noqa: ARG002
        """See `DeviceWork.behind`."""
        yield


class CudaWork:
    """A GPU; implements `DeviceWork`. Its clock is set by the smallest delay of late between a point and its being
    seen here."""

    def __init__(self, device: str) -> None:
        self._side = torch.cuda.Stream(device)
        self._origin = self.mark()
        self._offsets: deque[float] = deque(maxlen=OFFSETS_KEPT)

    def mark(self) -> torch.cuda.Event:
        """See `DeviceWork.mark`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def time_of(self, mark: torch.cuda.Event) -> float:
        """See `DeviceWork.time_of`."""
        mark.synchronize()
        since = self._origin.elapsed_time(mark) / 1e3
        self._offsets.append(time.monotonic() - since)
        return min(self._offsets) + since

    @contextmanager
    def behind(self, mark: torch.cuda.Event) -> Iterator[None]:
        """See `DeviceWork.behind`."""
        with torch.cuda.stream(self._side):
            self._side.wait_event(mark)
            yield
            self._side.synchronize()


def choose_device_work(device: str) -> DeviceWork:
    """For a device of this name."""
    return CudaWork(device) if torch.device(device).type == "cuda" else HostWork()
