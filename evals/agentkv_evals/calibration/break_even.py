"""The shortest reused length at which screening is faster than full prefill, measured on the device that serves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import RequestRefused
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import PlacedSpan, Resident, Selector
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.bench.workload import first_token, random_tokens

LENGTHS = (32, 64, 128, 256, 512, 1024)
FRESH = 16
"""Fresh tokens before the reused ones, and behind them."""

CONTEXT = 64
"""Tokens that their author had before it."""
ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Times to the first token of full prefill and of a rule.

    Attributes:
        rule: its name.
        lengths: reused tokens, ascending.
        faster: full prefill's time over the rule's at each length, medians of rounds in turn.
    """

    rule: str
    lengths: tuple[int, ...]
    faster: tuple[float, ...]

    @property
    def shortest(self) -> int:
        """The least length from which on the rule was always faster; twice the longest measured where it was not
        even there."""
        shortest = 2 * self.lengths[-1]
        for length, faster in zip(reversed(self.lengths), reversed(self.faster), strict=True):
            if faster <= 1:
                break
            shortest = length
        return shortest

    def as_dict(self) -> dict[str, Any]:
        """For the calibration's file."""
        return {"rule": self.rule, "faster": dict(zip(map(str, self.lengths), self.faster, strict=True))}


def engine_for(settings: Settings) -> Engine:
    """An engine of the model with room for one prompt at a time. Raises EngineError: the model can't be run."""
    config = EngineConfig(
        kv_memory=settings.kv_memory,
        device=settings.device,
        trace_layers=tuple(range(1, 1 + settings.trace_layers)),
    )
    return Engine.from_directory(settings.model, config)


def measure_break_even(
    engine: Engine, rule: Selector, *, lengths: Sequence[int] = LENGTHS, rounds: int = ROUNDS
) -> BreakEven:
    """Time both, in turn, at every length that the engine has room for; the first round is dropped.

    Raises:
        RequestRefused: it has no room for the shortest.
    """
    room = engine.max_tokens - 2 * FRESH - CONTEXT - 2
    fitting = [length for length in sorted(lengths) if length <= room]
    if not fitting:
        raise RequestRefused(f"the engine has room for {room} reused tokens, and {min(lengths)} are to be measured")
    faster = []
    for length in fitting:
        text = random_tokens(length, CONTEXT + length, engine)
        author = _request(f"author {length}", text)
        _time(engine, author)
        resident = engine.keep(author.request_id, CONTEXT, len(text))
        prompt = (
            *random_tokens(length + 1, FRESH, engine),
            *resident.token_ids,
            *random_tokens(length + 2, FRESH, engine),
        )
        full, screened = [], []
        for number in range(rounds + 1):
            full.append(_time(engine, _request(f"full {length} {number}", prompt)))
            screened.append(_time(engine, _request(f"screened {length} {number}", prompt, resident, rule)))
        engine.release(resident.handle)
        faster.append(round(median(full[1:]) / median(screened[1:]), 3))
    return BreakEven(rule=rule.name, lengths=tuple(fitting), faster=tuple(faster))


def _request(
    name: str, tokens: tuple[int, ...], resident: Resident | None = None, rule: Selector | None = None
) -> Request:
    """A prompt of a tenant of its own; the resident stands behind `FRESH` tokens."""
    spans = ()
    if resident is not None:
        end = FRESH + resident.num_tokens
        spans = (PlacedSpan(start=FRESH, end=end, handle=resident.handle, unseen=((0, FRESH),), num_gone=CONTEXT),)
    return Request(
        request_id=name,
        token_ids=tokens,
        sampling=SamplingParams(max_tokens=1),
        mode=ReuseMode.SCREENED if spans else ReuseMode.OFF,
        tenant=name,
        spans=spans,
        selector=rule if spans else None,
    )


def _time(engine: Engine, request: Request) -> float:
    started = time.perf_counter()
    for _ in first_token(engine, request):
        pass
    return time.perf_counter() - started
