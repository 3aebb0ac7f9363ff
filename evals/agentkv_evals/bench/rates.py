"""What the device can do, measured in the same run, and how long a prefill must take at that rate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.request import TokenSources


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Operations a second of a large matrix product, and bytes a second of a copy (read and written)."""

    flops: float
    bytes: float


def measure_rates(dtype: torch.dtype, device: str) -> Rates:
    """The best rates seen; medians of ten runs."""
    on_gpu = device != "cpu"
    rows, inner, columns = (8192, 4096, 14336) if on_gpu else (512, 512, 512)
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    source = torch.empty(1 << (30 if on_gpu else 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(
        flops=2 * rows * inner * columns / _seconds(lambda: a @ b, device),
        bytes=2 * source.numel() / _seconds(lambda: target.copy_(source), device),
    )


def synchronize(device: str) -> None:
    """Wait until the device is idle."""
    if device != "cpu":
        torch.cuda.synchronize(device)


class Mark:
    """A point in the order of a device's work; on CPU in time."""

    def __init__(self, device: str) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device != "cpu" else None
        self._time = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def until(self, later: "Mark") -> float:
        """Seconds from this point to a later one; the device has reached both."""
        if self._event is None or later._event is None:
            return later._time - self._time
        return self._event.elapsed_time(later._event) / 1e3


def _seconds(run: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(13):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[3:])


def flops_of(config: ModelConfig, sources: TokenSources) -> dict[str, float]:
    """Operations by phase (probe, rest): linears of the rows that ran, and their attention.

    Repaired and fresh rows are taken to see half of the prompt on average, probe rows all of it.
    """
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    linears = 2 * config.hidden_size * (heads + 3 * config.intermediate_size)
    a_key = 4 * config.num_heads * config.head_dim
    probe, rest = sources.probe_row_layers, sources.repair_row_layers + sources.fresh_row_layers
    return {
        "probe": probe * (linears + a_key * sources.prompt),
        "rest": rest * (linears + a_key * sources.prompt / 2) + 2 * config.hidden_size * config.vocab_size,
    }


def floor_seconds(flops: dict[str, float], weight_bytes: int, rates: Rates) -> float:
    """Roofline: each phase takes its operations at the product's rate, or one pass over the weights if that is longer.

    A copy's rate counts bytes read and written alike, so it is also what reading can reach.
    """
    return sum(max(count / rates.flops, weight_bytes / rates.bytes) for count in flops.values() if count)
