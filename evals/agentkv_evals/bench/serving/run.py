"""`agentkv bench serve`, once its options are read: drives one service with every load, number and arm, interleaved."""

import asyncio
import gc
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from agentkv.api import Reuse
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError
from agentkv.screening.selectors.registry import parse_selector
from agentkv.service import Service
from agentkv.tokenization import ChatTokenizer
from agentkv_evals.bench.random_service import random_service
from agentkv_evals.bench.serving.conversations import Conversation, Load, Lot, Maker, replays
from agentkv_evals.bench.serving.drive import Arm, drive
from agentkv_evals.bench.serving.figures import Cell, ceiling, cell_of, is_sustained, summary, table_of, together
from agentkv_evals.bench.shapes import device_dtype
from agentkv_evals.comparison.environment import environment
from agentkv_evals.replay.trace import read_traces

Make = Callable[[int, str], Conversation]

LEGEND = (
    "Random weights: fair for speed, never for quality. Tokenizer and vocabulary are the repository's. Conversations "
    "share nothing; as one ends, the next begins. TTFT and TPOT in ms; out/s: generated tokens; read: share of prompt "
    "tokens that were not computed; rows: row-layers, as a share of full prefill's."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """The command's options.

    Attributes:
        shape: of the model.
        loads: conversations made by lot.
        trace_file: recorded ones beside them; None takes none.
        concurrency: conversations at once.
        selectors: rules, each a screened arm beside full and exact.
        agents, tokens, reply_tokens: fewest and most agents of a conversation, tokens of a message, tokens of a reply
            (None: as of a message).
        talk_rounds: rounds of a conversation.
        seconds, conversations: a run ends after the one, or after so many of the other.
        rounds: runs of each cell.
        kv_memory, host_kv_memory: as in `ServiceConfig`.
        device, seed: where, and of what.
    """

    shape: str
    loads: tuple[Load, ...]
    trace_file: Path | None
    concurrency: tuple[int, ...]
    selectors: tuple[str, ...]
    agents: tuple[int, int]
    tokens: tuple[int, int]
    reply_tokens: tuple[int, int] | None
    talk_rounds: int
    seconds: float
    conversations: int | None
    rounds: int
    kv_memory: str
    host_kv_memory: str
    device: str
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """As it is written; a run goes on only where it is the same."""
        return json.loads(json.dumps({**asdict(self), "trace_file": self.trace_file and self.trace_file.name}))


def run_serving(settings: ServeSettings, *, json_file: Path | None, console: Console) -> dict[str, Any]:
    """Measure what the file does not hold yet; returns what it holds then.

    Raises:
        AgentKVError: options, files or rules that can't be used.
    """
    for first, last in (settings.agents, settings.tokens, settings.reply_tokens or settings.tokens):
        if not 1 <= first <= last:
            raise ConfigError(f"a range from {first} to {last} is empty: give the smaller number, then the larger")
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    if settings.agents[0] < 2:
        raise ConfigError(f"conversations of {settings.agents[0]} agent have nobody to talk to: give 2 or more")
    content = _begun(settings, json_file)
    cells: dict[str, Cell] = content["cells"]
    arms = [Arm(reuse=Reuse.OFF), Arm(reuse=Reuse.EXACT)]
    arms += [Arm(reuse=Reuse.SCREENED, selector=parse_selector(rule).name) for rule in settings.selectors]
    console.print(LEGEND, style="dim")
    with _service(settings) as (service, tokenizer):
        makers = _makers(settings, tokenizer)
        asyncio.run(_measure(service, settings, makers, arms, cells, lambda: _write(content, json_file)))
    content["summary"] = _summarise(settings, list(makers), arms, cells, console)
    _write(content, json_file)
    return content


async def _measure(
    service: Service,
    settings: ServeSettings,
    makers: Mapping[str, Make],
    arms: list[Arm],
    cells: dict[str, Cell],
    on_cell: Callable[[], None],
) -> None:
    """Every cell, round by round, the arms in turn; kernels are loaded before the first."""
    some = min(4, max(settings.concurrency))
    for arm in arms:
        make = next(iter(makers.values()))
        await drive(
            service, arm, make, concurrency=some, seconds=settings.seconds, most=some, name=f"warm-up {arm.name}"
        )
    gc.collect()
    gc.freeze()  # as the server does: a collection of all that was imported takes as long as many steps
    for number in range(settings.rounds):
        for load, make in makers.items():
            for concurrency in settings.concurrency:
                for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                    name = _name(load, concurrency, arm, number)
                    if name in cells:
                        continue
                    driven = await drive(
                        service,
                        arm,
                        make,
                        concurrency=concurrency,
                        seconds=settings.seconds,
                        most=settings.conversations,
                        name=name,
                    )
                    cells[name] = cell_of(driven)
                    on_cell()


def _summarise(
    settings: ServeSettings, loads: list[str], arms: list[Arm], cells: Mapping[str, Cell], console: Console
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for load in loads:
        merged = {
            (concurrency, arm.name): together(
                [cells[_name(load, concurrency, arm, number)] for number in range(settings.rounds)]
            )
            for concurrency in settings.concurrency
            for arm in arms
        }
        left = ceiling(merged[settings.concurrency[0], "exact"])
        sustained = {
            arm.name: max((c for c in settings.concurrency if is_sustained(merged[c, arm.name])), default=0)
            for arm in arms
        }
        for concurrency in settings.concurrency:
            title = f"{load}, {concurrency} conversations at once"
            console.print(table_of(title, {arm.name: merged[concurrency, arm.name] for arm in arms}))
        if not any(cell["ttft_ms"] for cell in merged.values()):
            console.print("No prompt was answered in its time: raise --seconds, or give shorter messages.")
        if left is not None:
            console.print(f"Ceiling: exact prefix caching leaves {left:.0%} of the prompt tokens to compute.")
        console.print(
            "At TTFT P90 <= 500 ms and TPOT P90 <= 50 ms, of the numbers measured: "
            + ", ".join(f"{arm} {number}" for arm, number in sustained.items())
        )
        told[load] = {
            "left_by_exact": left,
            "sustained": sustained,
            "cells": {f"{concurrency} {arm}": summary(cell) for (concurrency, arm), cell in merged.items()},
        }
    return told


def _service(settings: ServeSettings) -> AbstractContextManager[tuple[Service, ChatTokenizer]]:
    config = ServiceConfig.from_values(
        kv_memory=settings.kv_memory,
        host_kv_memory=settings.host_kv_memory,
        max_sequences=max(64, 8 * max(settings.concurrency)),
        max_rows_per_step=1024 if settings.device == "cpu" else 2048,
        device=settings.device,
    )
    return random_service(settings.shape, config, dtype=device_dtype(settings.device), seed=settings.seed)


def _makers(settings: ServeSettings, tokenizer: ChatTokenizer) -> dict[str, Make]:
    lot = Lot(
        agents=settings.agents,
        tokens=settings.tokens,
        reply_tokens=settings.reply_tokens,
        num_rounds=settings.talk_rounds,
        count=lambda text: len(tokenizer.encode(text)),
    )
    makers: dict[str, Make] = {load.value: Maker(load, lot, seed=settings.seed) for load in settings.loads}
    if settings.trace_file is not None:
        makers[f"replay of {settings.trace_file.name}"] = replays(read_traces(settings.trace_file))
    if not makers:
        raise ConfigError("nothing to serve: give a --load or a --trace")
    return makers


def _begun(settings: ServeSettings, json_file: Path | None) -> dict[str, Any]:
    """What the file holds of this very run, or a new beginning."""
    new = {
        "benchmark": "serve",
        "settings": settings.as_dict(),
        "environment": environment(),
        "device": "cpu" if settings.device == "cpu" else torch.cuda.get_device_name(settings.device),
        "cells": {},
    }
    if json_file is None or not json_file.exists():
        return new
    try:
        found = json.loads(json_file.read_text(encoding="utf-8"))
        same = found["settings"] == new["settings"] and found["device"] == new["device"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{json_file} is there and is no run to go on with ({error}): give another file") from None
    if not same:
        raise ConfigError(f"{json_file} holds a run with other settings: give those, or another file")
    return found


def _write(content: Mapping[str, Any], json_file: Path | None) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _name(load: str, concurrency: int, arm: Arm, number: int) -> str:
    return f"{load}, {concurrency} at once, {arm.name}, {number}"
