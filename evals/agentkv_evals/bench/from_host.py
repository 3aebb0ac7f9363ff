"""Residents that a benchmark sends to host memory before a prompt reads them."""

import time
from collections.abc import Sequence
from statistics import median

import torch

from agentkv.errors import ConfigError
from agentkv_engine.engine import Engine, HostResident
from agentkv_engine.reuse import Resident
from agentkv_evals.bench.rates import synchronize


class HostShelf:
    """Copies in host memory. `missing` is for the engine's `on_missing`."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._copies: dict[int, HostResident] = {}

    def attach(self, engine: Engine) -> None:
        """Set the engine whose residents these are."""
        self._engine = engine

    def missing(self, handles: Sequence[int]) -> None:
        """Bring residents back."""
        assert self._engine is not None, "attach comes first"
        self._engine.restore([self._copies[handle] for handle in handles])

    def send_down(self, residents: Sequence[Resident]) -> None:
        """Leave no copy of these in the pool. Raises ConfigError: host memory holds no more."""
        assert self._engine is not None, "attach comes first"
        for resident in residents:
            if resident.handle not in self._copies:
                copy = self._engine.offload(resident.handle)
                if copy is None:
                    raise ConfigError(f"host memory has no room for {resident.num_tokens} tokens more")
                self._copies[resident.handle] = copy
            self._engine.release(resident.handle)
        synchronize(self._engine.config.device)

    def forget(self, residents: Sequence[Resident]) -> None:
        """Free the copies of these, where there are some."""
        for resident in residents:
            if self._engine is not None and (copy := self._copies.pop(resident.handle, None)) is not None:
                self._engine.discard(copy)


def host_rate(device: str) -> float | None:
    """Bytes a second of a copy from page-locked host memory; None on CPU, where there is no other memory."""
    if device == "cpu":
        return None
    source = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    seconds = []
    for _ in range(8):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return source.numel() / median(seconds[3:])
