"""`agentkv bench ttft`: full and screened prefill of the same prompts, interleaved, beside the roofline."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError
from agentkv_engine.config import BLOCK_SIZE, EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.request import Request, TokenSources
from agentkv_evals.bench.from_host import HostShelf, host_rate
from agentkv_evals.bench.profile import layer_ranges, profile_prefill, profile_table
from agentkv_evals.bench.rates import Mark, Rates, floor_seconds, flops_of, measure_rates, synchronize
from agentkv_evals.bench.shapes import SHAPES, device_dtype, random_decoder
from agentkv_evals.bench.workload import NUM_SPANS, first_token, make_workload

WARM_ROUNDS = 3
"""Rounds that are dropped: kernels are compiled, and a size of step is captured the second time it comes."""

POOL_PROMPTS = 6
"""Prompts of the greatest length that the pool holds: residents, their authors' contexts, and a reader."""


@dataclass(slots=True, kw_only=True)
class Arm:
    """One arm's runs at one length. `ratio` None is full prefill; `from_host`: what is reused lies in host memory.

    Attributes:
        seconds: until the first token's id is on the host.
        steps: the time of each step on the device.
        after: what the host does for the prompt once its token is out.
    """

    ratio: float | None
    from_host: bool = False
    seconds: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    sources: TokenSources | None = None

    @property
    def name(self) -> str:
        """As shown."""
        place = ", host" if self.from_host else ""
        return "full" if self.ratio is None else f"screened {self.ratio:.0%}{place}"


def run_ttft(
    *,
    shape: str,
    lengths: Sequence[int],
    ratios: Sequence[float],
    rule: str,
    rounds: int,
    device: str,
    seed: int,
    profile_to: Path | None,
    from_host: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Measure; returns one record an arm and length. `from_host` adds arms that read from host memory.

    Raises:
        ConfigError: a length that the shape does not hold.
    """
    shelf = HostShelf()
    traced = rule == "reading_change"
    engine, decoder = _engine(shape, max(lengths), device, seed, shelf if from_host else None, traced=traced)
    weight_bytes = sum(parameter.numel() * parameter.dtype.itemsize for parameter in decoder.layers.parameters())
    rates = measure_rates(device_dtype(device), device)
    console.print(f"{shape} on {device}: {rates.flops / 1e12:.1f} TFLOP/s, copy {rates.bytes / 1e12:.2f} TB/s")
    host_bytes = host_rate(device) if from_host else None
    if host_bytes is not None:
        console.print(f"copies from host memory: {host_bytes / 1e9:.1f} GB/s")
    gc.collect()
    gc.freeze()  # a collection of all that was imported takes as long as a prefill
    records, profiles = [], {}
    for length in lengths:
        workload = make_workload(engine, length, seed=seed)
        arms = [Arm(ratio=ratio) for ratio in (None, *ratios)]
        arms += [Arm(ratio=ratio, from_host=True) for ratio in ratios if from_host]
        for number in range(WARM_ROUNDS + rounds):
            for arm in arms:
                if arm.from_host:
                    shelf.send_down(workload.residents)
                request = workload.request(f"{length} {arm.name} {number}", arm.ratio, seed + number, rule)
                _play(engine, request, arm)
        if profile_to is not None:
            with layer_ranges(decoder.layers):
                for ratio in (None, ratios[0]):
                    name = f"{length}-{'full' if ratio is None else f'screened-{ratio:g}'}"
                    request = workload.request(f"profile {name}", ratio, seed, rule)
                    profiles[name] = profile_prefill(engine, request, name, profile_to)
                    console.print(profile_table(profiles[name], f"kernels of {name} (ms)"))
        shelf.forget(workload.residents)
        for resident in workload.residents:
            engine.release(resident.handle)
        records += [_record(engine, length, arm, arms[0], rates, weight_bytes) for arm in arms]
        console.print(_table([record for record in records if record["length"] == length], length))
    return {
        "rule": rule,
        "arms": records,
        "profiles": profiles,
        "gemm_flops": rates.flops,
        "copy_bytes": rates.bytes,
        "host_copy_bytes": host_bytes,
    }


def _engine(
    shape: str, longest: int, device: str, seed: int, shelf: HostShelf | None, *, traced: bool
) -> tuple[Engine, Decoder]:
    """An engine with room for the longest prompt in one step, and on the shelf for its residents, and its model;
    `traced`: with the traces that rules ask, as many as the server keeps."""
    config = SHAPES[shape]
    if longest >= config.context_length:
        raise ConfigError(f"{shape} takes prompts of fewer than {config.context_length} tokens, not of {longest}")
    dtype = device_dtype(device)
    decoder = random_decoder(config, dtype=dtype, device=device, seed=seed)
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    engine_config = EngineConfig(
        kv_memory=POOL_PROMPTS * (longest + 64) * token_bytes,
        host_kv_memory=5 * (longest + NUM_SPANS * BLOCK_SIZE) * token_bytes // 4 if shelf is not None else 0,
        max_rows_per_step=2 * longest,
        device=device,
        dtype=dtype,
        trace_layers=(1, 2) if traced else (),
    )
    if shelf is None:
        return Engine(decoder, engine_config, revision=f"random {shape}"), decoder
    engine = Engine(decoder, engine_config, revision=f"random {shape}", on_missing=shelf.missing)
    shelf.attach(engine)
    return engine, decoder


def _play(engine: Engine, request: Request, arm: Arm) -> None:
    device = engine.config.device
    synchronize(device)
    marks, started = [Mark(device)], time.perf_counter()
    for sources in first_token(engine, request):
        marks.append(Mark(device))
        arm.sources = sources
    arm.seconds.append(time.perf_counter() - started)
    engine.release_finished()
    arm.after.append(time.perf_counter() - started - arm.seconds[-1])
    synchronize(device)
    arm.steps.append([start.until(end) for start, end in pairwise(marks)])
    assert arm.sources is not None, "the request ended without a token"
    assert not arm.sources.fallbacks, f"reuse did not happen: {arm.sources.fallbacks}"
    assert (arm.sources.restored > 0) == arm.from_host, f"{arm.sources.restored} tokens came from host memory"


def _record(engine: Engine, length: int, arm: Arm, full: Arm, rates: Rates, weight_bytes: int) -> dict[str, Any]:
    assert arm.sources is not None
    seconds = arm.seconds[WARM_ROUNDS:]
    ratios = sorted(whole / own for whole, own in zip(full.seconds[WARM_ROUNDS:], seconds, strict=True))
    floor = floor_seconds(flops_of(engine.model_config, arm.sources), weight_bytes, rates)
    return {
        "length": length,
        "arm": arm.name,
        "ratio": arm.ratio,
        "from_host": arm.from_host,
        "restored": arm.sources.restored,
        "ttft_ms": [1e3 * value for value in seconds],
        "ttft_ms_median": 1e3 * median(seconds),
        "after_ms_median": 1e3 * median(arm.after[WARM_ROUNDS:]),
        "steps_ms_median": [1e3 * median(step) for step in zip(*arm.steps[WARM_ROUNDS:], strict=False)],
        "times_faster": ratios,
        "times_faster_median": median(ratios),
        "floor_ms": 1e3 * floor,
        "share_of_roofline": floor / median(seconds),
        "row_layers": arm.sources.row_layers,
        "row_layers_of_full": length * engine.model_config.num_layers,
        "reused": arm.sources.reused,
        "repaired": arm.sources.repaired,
        "computed": arm.sources.computed,
    }


def _table(records: Sequence[dict[str, Any]], length: int) -> Table:
    table = Table(title=f"time to first token, {length} tokens (ms; rows: row-layers; floor: roofline)", padding=(0, 0))
    titles = "arm", "TTFT", "min..max", "steps", "faster", "min..max", "rows", "floor", "share"
    for title in titles:
        table.add_column(title, justify="left" if title == "arm" else "right", no_wrap=True)
    for record in records:
        ttft, faster = record["ttft_ms"], record["times_faster"]
        table.add_row(
            record["arm"],
            f"{record['ttft_ms_median']:.1f}",
            f"{min(ttft):.1f}..{max(ttft):.1f}",
            " + ".join(f"{step:.1f}" for step in record["steps_ms_median"]),
            f"{record['times_faster_median']:.2f}",
            f"{faster[0]:.2f}..{faster[-1]:.2f}",
            f"{record['row_layers'] / record['row_layers_of_full']:.1%}",
            f"{record['floor_ms']:.1f}",
            f"{record['share_of_roofline']:.0%}",
        )
    return table
