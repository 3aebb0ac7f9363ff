"""Drives an engine to the end of its requests, for tests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from agentkv_engine.cache.kv_pool import bytes_per_block
from agentkv_engine.cache.row_traces import TracedShape
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import EngineError
from agentkv_engine.request import FinishReason, Request, ReuseMode, SamplingParams, TokenLogprobs, TokenSources
from agentkv_engine.reuse import Amendment, Draft, Observation, PlacedSpan, Probe, RepairPlan, Resident, ReuseView

VOCABULARY_SIZE = 460
ONE = SamplingParams(max_tokens=1)


@dataclass(slots=True)
class Answer:
    """All that an engine gave for one request."""

    token_ids: tuple[int, ...] = ()
    parts: list[torch.Tensor] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    sources: TokenSources | None = None
    error: EngineError | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @property
    def logits(self) -> torch.Tensor:
        """Logits behind every token."""
        return torch.cat(self.parts)


def prompt_of(length: int, *, seed: int) -> tuple[int, ...]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, VOCABULARY_SIZE, (length,), generator=generator).tolist())


def steps(engine: Engine, answers: dict[str, Answer]) -> Iterator[None]:
    """Step until nothing is left, checking integrity after every step and collecting what comes."""
    while engine.has_work:
        for output in engine.step():
            answer = answers.setdefault(output.request_id, Answer())
            answer.token_ids += output.token_ids
            if output.logits is not None:
                answer.parts.append(output.logits)
            answer.finish_reason = output.finish_reason or answer.finish_reason
            answer.sources = output.sources or answer.sources
            answer.error = output.error
            answer.logprobs += output.logprobs
            answer.prompt_logprobs = output.prompt_logprobs or answer.prompt_logprobs
        engine.check()
        yield


def run(engine: Engine, *requests: Request) -> dict[str, Answer]:
    """Answers of these requests, run together."""
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.add(request)
    for _ in steps(engine, answers):
        pass
    return answers


@dataclass(frozen=True, slots=True)
class Seen:
    """What one probe saw, copied while it could be looked at."""

    positions: tuple[int, ...]
    attention_LRP: torch.Tensor

    @classmethod
    def of(cls, observation: Observation) -> "Seen":
        (probe,) = observation.probes
        maps = [observation.attention(layer, probe.positions) for layer in range(probe.depth)]
        return cls(probe.positions, torch.stack(maps))


@dataclass(frozen=True, slots=True)
class FixedPlan:
    """A selector that repairs given positions at given depths, after an optional probe, and remembers what it saw."""

    depths: dict[int, int]
    probe_rows: Probe | None = None
    seen: list["Seen | None"] = field(default_factory=list)
    views: list[ReuseView] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "fixed"

    def probe(self, view: ReuseView) -> Probe | None:
        if self.probe_rows is None:
            return None
        behind_prefix = tuple(p for p in self.probe_rows.positions if p >= view.num_prefix)
        return Probe(positions=behind_prefix, depth=self.probe_rows.depth)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        self.seen.append(Seen.of(observation) if observation is not None else None)
        self.views.append(view)
        reused = {p for span in view.spans for p in range(span.start, span.end)}
        chosen = sorted(p for p in self.depths if p in reused)
        return RepairPlan(positions=tuple(chosen), depths=tuple(self.depths[p] for p in chosen))


def keep(engine: Engine, token_ids: tuple[int, ...], start: int, end: int, **options: object) -> Resident:
    """Run a prompt alone and keep a part of it."""
    run(engine, Request(request_id="author", token_ids=token_ids, sampling=SamplingParams(max_tokens=1), **options))
    return engine.keep("author", start, end)


def span_of(resident: Resident, start: int, *, first: int = 0, length: int | None = None) -> PlacedSpan:
    """Place a resident (or a part of it) at a prompt position, in a changed context."""
    size = resident.num_tokens - first if length is None else length
    return PlacedSpan(
        start=start,
        end=start + size,
        handle=resident.handle,
        resident_start=first,
        unseen=((0, start),) if start else (),
        num_gone=1,
        hops=resident.hops,
    )


ALL_TRACED = (0, 1, 2)
"""The layers of the tests' small models."""


def engine_of(decoder, num_blocks: int, **options) -> Engine:
    """An engine whose pool has so many blocks, and whose small model's layers are all traced."""
    return Engine(
        decoder, EngineConfig(kv_memory=num_blocks * block_bytes_of(decoder), trace_layers=ALL_TRACED, **options)
    )


def block_bytes_of(decoder) -> int:
    """Bytes of one block of this model's float32 KV and traces."""
    shape = decoder.config
    traced = TracedShape(
        layers=ALL_TRACED, num_heads=shape.num_heads, head_dim=shape.head_dim, hidden_size=shape.hidden_size
    )
    return bytes_per_block(shape.num_layers, shape.num_kv_heads, shape.head_dim, torch.float32, traced=traced)


def screened(request_id: str, prompt, *spans, plan=None, **options) -> Request:
    """A request that reads spans, repaired by `plan` (default: not at all)."""
    return Request(
        request_id=request_id,
        token_ids=prompt,
        mode=ReuseMode.SCREENED,
        spans=spans,
        selector=plan or FixedPlan({}),
        **{"sampling": ONE, **options},
    )


@dataclass(frozen=True, slots=True)
class FixedDrafts:
    """A selector whose watch drafts and repairs what it is told to.

    Attributes:
        amendments: for each time that it is asked before a token that may not count yet, how many tokens to draft, and
            which positions to repair then.
    """

    amendments: tuple[tuple[int, tuple[int, ...]], ...]
    watches: list["FixedWatch"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "drafts"

    def probe(self, view: ReuseView) -> Probe | None:
        return None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        return RepairPlan(watch=self.watch)

    def watch(self, view: ReuseView, repaired: Sequence[int]) -> "FixedWatch":
        self.watches.append(FixedWatch(self.amendments, view, tuple(repaired)))
        return self.watches[-1]


@dataclass(slots=True)
class FixedWatch:
    """See `FixedDrafts`; remembers the positions of the rows that it saw, and what was drafted."""

    amendments: tuple[tuple[int, tuple[int, ...]], ...]
    view: ReuseView
    repaired: tuple[int, ...]
    saw: list[int] = field(default_factory=list)
    num_asked: int = 0

    def see(self, observation: Observation) -> None:
        self.saw += [position for probe in observation.probes for position in probe.positions]

    def ask(self, observation: Observation, speaking: range) -> Draft | Amendment | None:
        if self.num_asked == len(self.amendments):
            return None
        num_tokens, repairs = self.amendments[self.num_asked]
        if len(speaking) == 1 and num_tokens:
            return Draft(num_tokens=num_tokens)
        self.num_asked += 1
        placed = [span for span in self.view.spans if span.handle is not None]
        reused = {p for span in placed for p in range(span.start, span.end)} - {self.view.num_tokens - 1}
        stale = reused - set(self.repaired)
        chosen = tuple(p for p in repairs if p in stale)
        self.repaired += chosen
        return Amendment(repairs=chosen, left=0.25)
