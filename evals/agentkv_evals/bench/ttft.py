"""`agentkv bench ttft`: full and screened prefill of the same prompts, interleaved, beside the roofline."""

import gc
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from agentkv.errors import ConfigError
from agentkv_engine.config import BLOCK_SIZE, EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.decoder import Decoder
from agentkv_evals.bench.beside_transformers import prefill_seconds, transformers_model
from agentkv_evals.bench.from_host import HostShelf, host_rate
from agentkv_evals.bench.profile import layer_ranges, profile_prefill, profile_table
from agentkv_evals.bench.rates import measure_rates
from agentkv_evals.bench.shapes import SHAPES, device_dtype, random_decoder
from agentkv_evals.bench.ttft_arms import WARM_ROUNDS, Arm, play, record, table
from agentkv_evals.bench.workload import NUM_SPANS, make_workload

POOL_PROMPTS = 6
"""Prompts of the greatest length that the pool holds: residents, their authors' contexts, and a reader."""


def run_ttft(
    *,
    shape: str,
    lengths: Sequence[int],
    ratios: Sequence[float],
    rule: str,
    rounds: int,
    device: str,
    seed: int,
    beside_transformers: bool = False,
    profile_to: Path | None,
    from_host: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Measure; returns one record an arm and length. `from_host` adds arms that read from host memory,
    `beside_transformers` times transformers' first token.

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
    model = transformers_model(SHAPES[shape], device_dtype(device), device) if beside_transformers else None
    gc.collect()
    gc.freeze()  # a collection of all that was imported takes as long as a prefill
    records, profiles, transformers = [], {}, []
    for length in lengths:
        workload = make_workload(engine, length, seed=seed)
        arms = [Arm(ratio=ratio) for ratio in (None, *ratios)]
        arms += [Arm(ratio=ratio, from_host=True) for ratio in ratios if from_host]
        theirs: list[float] = []
        for number in range(WARM_ROUNDS + rounds):
            if model is not None:
                theirs.append(prefill_seconds(model, workload.token_ids))
            for arm in arms:
                if arm.from_host:
                    shelf.send_down(workload.residents)
                request = workload.request(f"{length} {arm.name} {number}", arm.ratio, seed + number, rule)
                play(engine, request, arm)
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
        if theirs:
            seconds = theirs[WARM_ROUNDS:]
            transformers.append({"length": length, "ttft_ms": [1e3 * value for value in seconds]})
            console.print(f"transformers, {length} tokens: {1e3 * median(seconds):.1f} ms to the first token")
        records += [record(engine, length, arm, arms[0], rates, weight_bytes) for arm in arms]
        console.print(table([record for record in records if record["length"] == length], f"{length} tokens"))
    return {
        "rule": rule,
        "arms": records,
        "profiles": profiles,
        "gemm_flops": rates.flops,
        "copy_bytes": rates.bytes,
        "host_copy_bytes": host_bytes,
        "transformers": transformers,
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
