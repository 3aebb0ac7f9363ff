"""Copies between the pool and host memory, beside the model's own work, and who waits for them.

Copies into the pool are issued layer by layer: whoever reads or writes a layer waits for that layer's alone, so that
the first layers run while the last ones are still on their way.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Transfers(Protocol):
    """Runs copies in the order in which they come. All waiting is the device's: no call waits for a copy to end."""

    def save(self, copy: Callable[[], None], sources: Sequence[Tensor]) -> None:
        """Copy from these tensors, which nobody writes any more, to host memory."""
        ...

    def load(self, layer: int, copy: Callable[[], None], uses: Sequence[Tensor]) -> None:
        """Copy from host memory into one layer, after all that the device was given before; `uses`: tensors on the
        device that the copy reads."""
        ...

    def wait(self, layer: int) -> None:
        """What comes now finds the loads of this layer done."""
        ...

    def wait_for_all(self) -> None:
        """What comes now finds all loads done."""
        ...


class InPlace:
    """Copies at once: there is one memory, and nothing to wait for."""

    def save(self, copy: Callable[[], None], sources: Sequence[Tensor]) -> None:  # noqa: ARG002
        """See `Transfers.save`."""
        copy()

    def load(self, layer: int, copy: Callable[[], None], uses: Sequence[Tensor]) -> None:  # noqa: ARG002
        """See `Transfers.load`."""
        copy()

    def wait(self, layer: int) -> None:
        """See `Transfers.wait`."""

    def wait_for_all(self) -> None:
        """See `Transfers.wait_for_all`."""


class SideStream:
    """Copies on a CUDA stream of their own. Host memory must be page-locked, or every copy waits for its end."""

    def __init__(self, device: str) -> None:
        self._stream = torch.cuda.Stream(device)
        self._loads: dict[int, list[torch.cuda.Event]] = {}

    def save(self, copy: Callable[[], None], sources: Sequence[Tensor]) -> None:
        """See `Transfers.save`."""
        self._issue(copy, sources)

    def load(self, layer: int, copy: Callable[[], None], uses: Sequence[Tensor]) -> None:
        """See `Transfers.load`."""
        try:
            self._issue(copy, uses)
        finally:  # whoever gets the blocks of a load that failed midway waits for what was begun
            done = torch.cuda.Event()
            done.record(self._stream)
            self._loads.setdefault(layer, []).append(done)

    def wait(self, layer: int) -> None:
        """See `Transfers.wait`."""
        for event in self._loads.pop(layer, ()):
            torch.cuda.current_stream(self._stream.device).wait_event(event)

    def wait_for_all(self) -> None:
        """See `Transfers.wait_for_all`."""
        for layer in list(self._loads):
            self.wait(layer)

    def _issue(self, copy: Callable[[], None], uses: Sequence[Tensor]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        try:
            with torch.cuda.stream(self._stream):
                copy()
        finally:
            for tensor in uses:  # its memory is not given to others before the copy has run
                tensor.record_stream(self._stream)


def choose_transfers(device: str) -> Transfers:
    """A side stream on CUDA; elsewhere copies are made in place."""
    return SideStream(device) if torch.device(device).type == "cuda" else InPlace()
