"""`agentkv bench decode`: tokens a second of a batch of running requests, beside what reading memory allows."""

import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_evals.bench.beside_transformers import decode_seconds, transformers_model
from agentkv_evals.bench.rates import measure_rates
from agentkv_evals.bench.shapes import SHAPES, device_dtype, random_decoder
from agentkv_evals.bench.workload import random_tokens

WARM_STEPS = 8
"""Decode steps that are not timed: kernels are loaded and graphs captured."""


def run_decode(
    *,
    shape: str,
    batches: Sequence[int],
    context: int,
    num_tokens: int,
    rounds: int,
    device: str,
    seed: int,
    beside_transformers: bool,
    console: Console,
) -> dict[str, Any]:
    """Measure each batch size; returns the record.

    Raises:
        ConfigError: contexts that the shape does not hold.
    """
    config, dtype = SHAPES[shape], device_dtype(device)
    most = context + WARM_STEPS + num_tokens + 1
    if most > config.context_length:
        raise ConfigError(f"{shape} takes {config.context_length} tokens, not {most}: give a shorter --length")
    decoder = random_decoder(config, dtype=dtype, device=device, seed=seed)
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    engine = Engine(
        decoder,
        EngineConfig(
            kv_memory=max(batches) * (most + max(batches) + 32) * token_bytes,
            max_rows_per_step=max(2048, *batches),
            max_sequences=max(batches),
            device=device,
            dtype=dtype,
        ),
        revision=f"random {shape}",
    )
    weight_bytes = sum(p.numel() * p.dtype.itemsize for p in (*decoder.layers.parameters(), decoder.head.weight))
    rates = measure_rates(dtype, device)
    console.print(f"{shape} on {device}: copy {rates.bytes / 1e12:.2f} TB/s, {weight_bytes / 1e9:.2f} GB of weights")
    arms: dict[str, Callable[[int, int], list[float]]] = {
        "agentkv": lambda batch, number: _engine_steps(engine, batch, context, num_tokens, f"{batch} {number}")
    }
    if beside_transformers:
        model = transformers_model(config, dtype, device)
        arms["transformers"] = lambda batch, number: decode_seconds(model, batch, context, num_tokens, number)
    gc.collect()
    gc.freeze()  # a collection of all that was imported takes as long as many steps
    records = []
    for batch in batches:
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(rounds):
            for name, run in arms.items():
                try:
                    times[name] += run(batch, number)
                except torch.cuda.OutOfMemoryError:
                    if name == "agentkv":
                        raise
                    console.print(f"{name} does not fit beside it at batch {batch}: out of memory")
                    torch.cuda.empty_cache()
        floor = (weight_bytes + batch * (context + num_tokens / 2) * token_bytes) / rates.bytes
        for name, seconds in times.items():
            if not seconds:
                continue
            records.append(
                {
                    "arm": name,
                    "batch": batch,
                    "context": context,
                    "step_ms_median": 1e3 * median(seconds),
                    "step_ms": [1e3 * value for value in seconds],
                    "tokens_per_second": batch / median(seconds),
                    "floor_ms": 1e3 * floor,
                    "share_of_bandwidth": floor / median(seconds),
                }
            )
        console.print(_table([record for record in records if record["batch"] == batch]))
    return {"arms": records, "copy_bytes": rates.bytes, "weight_bytes": weight_bytes}


def _engine_steps(engine: Engine, batch: int, context: int, num_tokens: int, name: str) -> list[float]:
    """Seconds from step to step while all requests of the batch decode: a step ends when its tokens are on the host."""
    emitted = dict.fromkeys((f"{name} {number}" for number in range(batch)), 0)
    for number, request_id in enumerate(emitted):
        engine.add(
            Request(
                request_id=request_id,
                token_ids=random_tokens(number, context, engine),
                sampling=SamplingParams(max_tokens=WARM_STEPS + num_tokens + batch),
                mode=ReuseMode.OFF,
                tenant=request_id,
            )
        )
    seconds: list[float] = []
    last = time.perf_counter()
    while len(seconds) < WARM_STEPS + num_tokens:
        everyone = all(emitted.values())
        outputs = engine.step()
        now = time.perf_counter()
        if everyone:
            seconds.append(now - last)
        last = now
        for output in outputs:
            if output.error is not None:
                raise output.error
            emitted[output.request_id] += len(output.token_ids)
    for request_id in emitted:
        engine.abort(request_id)
    engine.release_finished()
    return seconds[WARM_STEPS:]


def _table(records: Sequence[dict[str, Any]]) -> Table:
    first = records[0]
    table = Table(title=f"decode, batch {first['batch']}, contexts of {first['context']} tokens")
    for title in ("arm", "step ms", "tokens/s", "floor ms", "share of bandwidth"):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for record in records:
        table.add_row(
            record["arm"],
            f"{record['step_ms_median']:.2f}",
            f"{record['tokens_per_second']:.0f}",
            f"{record['floor_ms']:.2f}",
            f"{record['share_of_bandwidth']:.0%}",
        )
    return table
