"""`agentkv bench reuse`, once its options are read: the demo's graph and recorded conversations, each prompt in turn
with full, exact and screened prefill, and where the time before its rows goes."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from agentkv.api import ChatMessage, ChatRequest, Reuse
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError
from agentkv.screening.selectors.registry import parse_selector
from agentkv.service import Service
from agentkv_evals.bench.random_service import random_service
from agentkv_evals.bench.reuse_phases import PHASES, timed_phases
from agentkv_evals.comparison.arms import Arm, ask, rotated, warm_up
from agentkv_evals.comparison.environment import environment, processor
from agentkv_evals.demo.case import harbour_case
from agentkv_evals.replay.trace import read_traces
from agentkv_evals.replay.turns import Turn, turns_of

Count = Callable[[str], int]

BAR = 0.05
"""Most of a screened prompt's time to first token that tokenising, recognition and planning may take."""

MODES = (Reuse.OFF, Reuse.EXACT, Reuse.SCREENED)
WORDS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseSettings:
    """The command's options."""

    shape: str
    length: int
    trace_file: Path | None
    num_traces: int
    selector: str
    dtype: str
    rounds: int
    threads: int
    kv_memory: str
    seed: int


def run_reuse(settings: ReuseSettings, *, json_file: Path | None, console: Console) -> dict[str, Any]:
    """Measure; returns what is written.

    Raises:
        ConfigError: a file that can't be read or written, or a prompt beyond the model's context.
        InvalidRequest: no such rule.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    selector = parse_selector(settings.selector).name
    torch.set_num_threads(settings.threads)
    config = ServiceConfig.from_values(kv_memory=settings.kv_memory)
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    with random_service(settings.shape, config, dtype=dtype, seed=settings.seed) as (service, tokenizer):
        loads = dict(_loads(settings, lambda text: len(tokenizer.encode(text))))
        warm_up(service)
        records = {
            name: [_measure(service, name, turn, selector, settings.rounds, index) for index, turn in enumerate(turns)]
            for name, turns in loads.items()
        }
    for name, turns in records.items():
        console.print(_table(f"{name}, {settings.shape}, {settings.dtype}, {settings.threads} thread(s)", turns))
    console.print(_verdict([turn for turns in records.values() for turn in turns]))
    content = {
        "benchmark": "reuse",
        "settings": asdict(settings) | {"trace_file": settings.trace_file and settings.trace_file.name},
        "selector": selector,
        "loads": records,
        "environment": environment(),
        "processor": processor("cpu"),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def five_agents(length: int, count: Count, seed: int) -> list[Turn]:
    """The demo's graph: three researchers speak at once, a critic reads them, a writer reads all four.

    What they say is made of the demo's own words, so long that the critic's prompt has about `length` tokens.
    """
    case = harbour_case(authored=True)
    lot = random.Random(seed)
    words = [word for agent in case.agents for word in (agent.reply or "").split()]
    parts = [(length - count(case.critic.system + case.critic.task)) // len(case.researchers)] * len(case.researchers)
    said: list[ChatMessage] = []
    turns = []
    for agent, num_tokens in zip(case.agents, [*parts, length // 8, length // 8], strict=True):
        seen = () if agent in case.researchers else tuple(said)
        prompt = (
            ChatMessage(role="system", content=agent.system),
            *seen,
            ChatMessage(role="user", content=agent.task),
        )
        turns.append(
            Turn(index=len(turns), agent=agent.name, prompt=prompt, reply=_text(lot, words, num_tokens, count))
        )
        said.append(ChatMessage(role="user", content=turns[-1].reply, name=agent.name))
    return turns


def _text(lot: random.Random, words: Sequence[str], num_tokens: int, count: Count) -> str:
    """About so many tokens of text."""
    parts: list[str] = []
    left = num_tokens
    while left > 0 or not parts:
        parts.append(" ".join(lot.choices(words, k=WORDS_AT_ONCE)))
        left -= count(parts[-1])
    return " ".join(parts)


def _loads(settings: ReuseSettings, count: Count) -> Iterator[tuple[str, list[Turn]]]:
    yield f"five agents, about {settings.length} tokens", five_agents(settings.length, count, settings.seed)
    if settings.trace_file is None:
        return
    for trace in read_traces(settings.trace_file)[: settings.num_traces]:
        fitting = [turn for turn in turns_of(trace) if sum(count(m.content) for m in turn.prompt) <= settings.length]
        yield f"replay of {trace.id}", fitting


def _measure(service: Service, load: str, turn: Turn, selector: str, rounds: int, index: int) -> dict[str, Any]:
    """One agent's turn by all arms, each in tenants of its own."""
    record: dict[str, Any] = {"agent": turn.agent, "ttft_s": {mode.value: [] for mode in MODES}, "phases_s": []}
    for number in range(rounds):
        arms = [
            Arm(reuse=mode, selector=selector if mode is Reuse.SCREENED else None, tenant=f"{load}/{mode}/{number}")
            for mode in MODES
        ]
        for arm in rotated(arms, index + number):
            with timed_phases(service) as spent:
                usage = ask(service, arm, _request(turn, arm)).usage
            record["ttft_s"][arm.reuse.value].append(usage.ttft)
            record["prompt"] = usage.prompt_tokens
            if arm.reuse is Reuse.SCREENED:
                record["phases_s"].append({phase: spent[phase] for phase in PHASES})
                record |= {"reused": usage.reuse.reused, "repaired": usage.reuse.repaired}
    shares = [
        {phase: spent[phase] / ttft for phase in PHASES}
        for spent, ttft in zip(record["phases_s"], record["ttft_s"][Reuse.SCREENED.value], strict=True)
    ]
    record["shares"] = {phase: median(share[phase] for share in shares) for phase in PHASES}
    return record


def _request(turn: Turn, arm: Arm) -> ChatRequest:
    """Arms that keep KV go on to the recorded reply, for those who read it; full prefill need not."""
    if arm.reuse is Reuse.OFF:
        return ChatRequest(messages=turn.prompt, max_tokens=1, agent=turn.agent)
    return ChatRequest(messages=turn.prompt, forced_reply=turn.reply, agent=turn.agent)


def _table(title: str, records: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"{title} (TTFT in ms)", box=SIMPLE, pad_edge=False)
    columns = ("agent", "prompt", "reused", "repair", "full", "exact", "screen", "x", "own", "look")
    for column in columns:
        table.add_column(column, justify="left" if column == "agent" else "right", no_wrap=True)
    for record in records:
        full, exact, screened = (median(record["ttft_s"][mode.value]) for mode in MODES)
        table.add_row(
            record["agent"],
            *(str(record[name]) for name in ("prompt", "reused", "repaired")),
            *(f"{1e3 * seconds:.0f}" for seconds in (full, exact, screened)),
            f"{full / screened:.2f}",
            f"{_own(record):.1%}",
            f"{record['shares']['look']:.1%}",
        )
    return table


def _own(record: dict[str, Any]) -> float:
    """Share of tokenising, recognition and planning."""
    return sum(record["shares"][phase] for phase in PHASES[:3])


def _verdict(records: Sequence[dict[str, Any]]) -> str:
    reading = [record for record in records if record["reused"] + record["repaired"]]
    if not reading:
        return "No prompt read kept messages."
    longest = max(reading, key=lambda record: record["prompt"])
    return (
        f"Tokenising, recognition and planning (own) take {_own(longest):.1%} of the time to first token of the "
        f"longest screened prompt ({longest['prompt']} tokens; at most {BAR:.0%} is wanted)."
    )
