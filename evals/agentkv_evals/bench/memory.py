"""`agentkv bench memory`: what agents over one thread hold, by counting blocks, and how many conversations fit."""

import gc
from collections.abc import Sequence
from itertools import count
from typing import Any

from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError
from agentkv_engine.config import BLOCK_SIZE, EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_evals.bench.shapes import SHAPES, device_dtype, random_decoder
from agentkv_evals.bench.workload import Workload, make_workload

NUM_AGENTS = 5
MANY_TOKENS = 1 << 12
SHORTEST = 512


def run_memory(
    *, shape: str, length: int, ratios: Sequence[float], threads: int, device: str, seed: int, console: Console
) -> dict[str, Any]:
    """Measure; returns the record. `threads` is the KV budget of the second part, in copies of the thread.

    Raises:
        ConfigError: a thread that the shape does not hold.
    """
    config = SHAPES[shape]
    if length < SHORTEST:
        raise ConfigError(f"a thread of {length} tokens has no fresh text before its first message: give {SHORTEST}")
    if length + MANY_TOKENS > config.context_length:
        raise ConfigError(f"{shape} takes {config.context_length} tokens: give a --length well below")
    dtype = device_dtype(device)
    decoder = random_decoder(config, dtype=dtype, device=device, seed=seed)
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize

    def engine_for(num_tokens: int) -> Engine:
        gc.collect()  # the pool of the engine before goes first
        memory = num_tokens * token_bytes
        return Engine(
            decoder,
            EngineConfig(kv_memory=memory, max_rows_per_step=length, max_sequences=1024, device=device, dtype=dtype),
        )

    held = [_held(engine_for(16 * length), length, ratio, seed) for ratio in ratios]
    console.print(_held_table(held, length))
    fitting = [_fitting(engine_for(threads * length), length, ratio, seed) for ratio in (None, *ratios)]
    for record in fitting:
        record["times_exact"] = record["conversations"] / max(1, fitting[0]["conversations"])
    console.print(_fitting_table(fitting, length, threads))
    return {"token_bytes": token_bytes, "held": held, "conversations": fitting, "budget_threads": threads}


def _held(engine: Engine, length: int, ratio: float, seed: int) -> dict[str, Any]:
    """Blocks that the thread's residents and five running readers hold."""
    workload = make_workload(engine, length, seed=seed)
    block_bytes = engine.memory().block_bytes
    thread_bytes = length * block_bytes / BLOCK_SIZE
    kept = sum(engine.resident_bytes(resident.handle) for resident in workload.residents)
    before = _allocated_blocks(engine)
    sources = _start(engine, [_reader(workload, number, "thread", ratio, seed) for number in range(NUM_AGENTS)])
    assert all(not source.fallbacks for source in sources), f"reuse did not happen: {sources[0].fallbacks}"
    private = (_allocated_blocks(engine) - before) * block_bytes
    repaired = sum(source.repaired for source in sources) / (NUM_AGENTS * length)
    fresh = sum(source.computed for source in sources) / (NUM_AGENTS * length)
    return {
        "ratio": ratio,
        "repaired_share": repaired,
        "fresh_share": fresh,
        "kept_copies": kept / thread_bytes,
        "private_copies": private / thread_bytes,
        "copies": (kept + private) / thread_bytes,
        "bound": 1.02 + NUM_AGENTS * (repaired + fresh),
        "copies_alone": NUM_AGENTS,
    }


def _fitting(engine: Engine, length: int, ratio: float | None, seed: int) -> dict[str, Any]:
    """Conversations of five agents that run at once until one has to wait; `ratio` None reads exact prefixes only."""
    for conversation in count():
        workload = make_workload(engine, length, seed=seed + conversation, most_context=64)
        requests = [_reader(workload, number, str(conversation), ratio, seed) for number in range(NUM_AGENTS)]
        if len(_start(engine, requests)) < NUM_AGENTS:
            return {"ratio": ratio, "arm": _name(ratio), "conversations": conversation}
    raise AssertionError("a pool is finite")


def _reader(workload: Workload, number: int, conversation: str, ratio: float | None, seed: int) -> Request:
    """One agent: a first token of its own, then the thread; it goes on writing."""
    own = workload.request(f"agent {number} of {conversation}", ratio, seed + number)
    return Request(
        request_id=own.request_id,
        token_ids=(number, *own.token_ids[1:]),
        sampling=SamplingParams(max_tokens=MANY_TOKENS),
        mode=ReuseMode.EXACT if ratio is None else ReuseMode.SCREENED,
        tenant=conversation,
        spans=own.spans,
        selector=own.selector,
    )


def _start(engine: Engine, requests: Sequence[Request]) -> list[Any]:
    """Step until all have their first token, or one of them gives way or waits; sources of those that have."""
    waiting, preempted, sources = {request.request_id for request in requests}, engine.num_preemptions, []
    for request in requests:
        engine.add(request)
    for _ in range(8 * len(requests)):
        for output in engine.step():
            if output.error is not None:
                raise output.error
            if output.sources is not None and output.request_id in waiting:
                waiting.remove(output.request_id)
                sources.append(output.sources)
        if not waiting or engine.num_preemptions > preempted:
            break
    return sources if engine.num_preemptions == preempted else []


def _allocated_blocks(engine: Engine) -> int:
    memory = engine.memory()
    return memory.num_blocks - memory.free


def _name(ratio: float | None) -> str:
    return "exact prefixes" if ratio is None else f"screened {ratio:.0%}"


def _held_table(records: Sequence[dict[str, Any]], length: int) -> Table:
    table = Table(title=f"{NUM_AGENTS} agents over one thread of {length} tokens, in copies of it")
    for title in ("repaired", "fresh", "kept", "private", "together", "1.02 + 5(r + f)", "each alone"):
        table.add_column(title, justify="right")
    for record in records:
        table.add_row(
            f"{record['repaired_share']:.1%}",
            f"{record['fresh_share']:.1%}",
            *(f"{record[key]:.3f}" for key in ("kept_copies", "private_copies", "copies", "bound")),
            str(record["copies_alone"]),
        )
    return table


def _fitting_table(records: Sequence[dict[str, Any]], length: int, threads: int) -> Table:
    table = Table(title=f"conversations of {NUM_AGENTS} agents at once, KV of {threads} threads of {length}")
    for title in ("arm", "conversations", "times exact"):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for record in records:
        table.add_row(record["arm"], str(record["conversations"]), f"{record['times_exact']:.1f}")
    return table
