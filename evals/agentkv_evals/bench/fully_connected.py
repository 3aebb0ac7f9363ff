"""`agentkv bench agents`: KVCOMM's setting (arXiv 2510.12872), five agents that read all that those before them wrote.

Every agent has a system prompt of 512 tokens, then the user's text of 1,024, then 512 tokens of each agent before it.
"""

import gc
import random
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.reuse import PlacedSpan, Resident
from agentkv_evals.bench.rates import measure_rates
from agentkv_evals.bench.shapes import SHAPES, device_dtype, random_decoder
from agentkv_evals.bench.ttft_arms import WARM_ROUNDS, Arm, play, record, table
from agentkv_evals.bench.workload import Workload, keep_text, tokens

NUM_AGENTS = 5
PREFIX, USER_TEXT, REPLY = 512, 1024, 512


def run_agents(
    *, shape: str, ratios: Sequence[float], rule: str, rounds: int, device: str, seed: int, console: Console
) -> dict[str, Any]:
    """Time to first token of each agent but the first, which has nothing to reuse: full and screened, interleaved."""
    config, dtype = SHAPES[shape], device_dtype(device)
    decoder = random_decoder(config, dtype=dtype, device=device, seed=seed)
    longest = PREFIX + USER_TEXT + NUM_AGENTS * REPLY
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    settings = EngineConfig(
        kv_memory=(WARM_ROUNDS + rounds + 2) * NUM_AGENTS * longest * token_bytes,
        max_rows_per_step=2 * longest,
        device=device,
        dtype=dtype,
        trace_layers=(1, 2) if rule == "reading_change" else (),
    )
    engine = Engine(decoder, settings, revision=f"random {shape}")
    weight_bytes = sum(parameter.numel() * parameter.dtype.itemsize for parameter in decoder.layers.parameters())
    rates = measure_rates(dtype, device)
    gc.collect()
    gc.freeze()
    records = []
    for number, workload in enumerate(agents(engine, seed=seed)):
        arms = [Arm(ratio=ratio) for ratio in (None, *ratios)]
        for turn in range(WARM_ROUNDS + rounds):
            for arm in arms:
                name = f"agent {number} {arm.name} {turn}"
                play(engine, workload.request(name, arm.ratio, seed + turn, rule), arm)
        length = len(workload.token_ids)
        own = [{"agent": number + 2, **record(engine, length, arm, arms[0], rates, weight_bytes)} for arm in arms]
        console.print(table(own, f"agent {number + 2} of {NUM_AGENTS}, {length} tokens"))
        records += own
    return {"rule": rule, "arms": records, "gemm_flops": rates.flops, "copy_bytes": rates.bytes}


def agents(engine: Engine, *, seed: int) -> list[Workload]:
    """The prompts of the second agent and those behind it, over what the agents before them read and wrote."""
    lot = random.Random(seed)
    texts = [tokens(lot, USER_TEXT, engine)]
    residents: list[Resident] = []
    workloads = []
    for number in range(NUM_AGENTS):
        prefix = tokens(lot, PREFIX, engine)
        prompt = prefix + tuple(token for text in texts for token in text)
        if residents:
            workloads.append(Workload(token_ids=prompt, spans=_spans(residents), residents=tuple(residents)))
        else:
            residents.append(keep_text(engine, "user", prefix, texts[0]))
        texts.append(tokens(lot, REPLY, engine))
        residents.append(keep_text(engine, f"agent {number}", prompt, texts[-1]))
    return workloads


def _spans(residents: Sequence[Resident]) -> tuple[PlacedSpan, ...]:
    """One behind the other; their authors had a system prompt of their own before them, and what else stands there."""
    spans, start = [], PREFIX
    for resident in residents:
        end = start + resident.num_tokens
        spans.append(PlacedSpan(start=start, end=end, handle=resident.handle, unseen=((0, PREFIX),), num_gone=PREFIX))
        start = end
    return tuple(spans)
