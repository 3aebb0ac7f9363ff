"""A prompt of reused spans whose authors wrote them elsewhere, and the rule that repairs some of their rows."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentkv.screening.selectors.random_rows import RandomRows
from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams, TokenSources
from agentkv_engine.reuse import Observation, PlacedSpan, Probe, RepairPlan, Resident, ReuseView, Selector

NUM_SPANS = 8
FRESH_SHARE = 0.03
PROBE_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedRandomRows:
    """`random_rows` behind a probe of the prompt's last rows through all layers: the work of screening, by lot."""

    rows: RandomRows

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"probed {self.rows.name}"

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`."""
        count = max(1, round(PROBE_SHARE * view.num_tokens))
        return Probe(positions=tuple(range(view.num_tokens - count, view.num_tokens)), depth=view.num_layers)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`."""
        return self.rows.plan(view, observation)


RULES: dict[str, Callable[[float, int], Selector]] = {
    "random": lambda ratio, seed: ProbedRandomRows(rows=RandomRows(ratio=ratio, seed=seed)),
    "reading_change": lambda ratio, _seed: ReadingChange(ratio=ratio),
}
"""Rules that may choose the rows, by ratio and seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A prompt, and the residents that most of it is read from."""

    token_ids: tuple[int, ...]
    spans: tuple[PlacedSpan, ...]
    residents: tuple[Resident, ...]

    def request(self, request_id: str, ratio: float | None, seed: int, rule: str = "random") -> Request:
        """Full prefill (`ratio` None), or screened by one of `RULES`. A tenant of its own: no request reads another's
        prefix."""
        screened = ratio is not None
        return Request(
            request_id=request_id,
            token_ids=self.token_ids,
            sampling=SamplingParams(max_tokens=1),
            mode=ReuseMode.SCREENED if screened else ReuseMode.OFF,
            tenant=request_id,
            spans=self.spans if screened else (),
            selector=RULES[rule](ratio, seed) if screened else None,
        )


def make_workload(engine: Engine, length: int, *, seed: int, most_context: int | None = None) -> Workload:
    """Run authors, each with a context of its own before the text it writes, and place their texts in a new prompt.

    `most_context` None lets an author read up to a quarter of the prompt's length."""
    lot = random.Random(seed)
    gaps = _shares(round(FRESH_SHARE * length), NUM_SPANS + 1)
    texts = _shares(length - sum(gaps), NUM_SPANS)
    prompt = list(tokens(lot, gaps[0], engine))
    spans, residents = [], []
    for number, (text_length, gap) in enumerate(zip(texts, gaps[1:], strict=True)):
        context = tokens(lot, lot.randint(1, most_context or max(2, length // 4)), engine)
        text = tokens(lot, text_length, engine)
        resident = keep_text(engine, f"author {number} of {length}", context, text)
        start = len(prompt)
        unseen, gone, unread = ((0, start),), len(context), tuple((span.start, span.end) for span in spans)
        end = start + text_length
        spans.append(
            PlacedSpan(start=start, end=end, handle=resident.handle, unseen=unseen, num_gone=gone, unread=unread)
        )
        residents.append(resident)
        prompt += text + tokens(lot, gap, engine)
    return Workload(token_ids=tuple(prompt), spans=tuple(spans), residents=tuple(residents))


def first_token(engine: Engine, request: Request) -> Iterator[TokenSources | None]:
    """Step until the first token is there, one item a step; the last is where the prompt's KV came from."""
    engine.add(request)
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
            if output.sources is not None:
                yield output.sources
                return
        yield None


def random_tokens(seed: int, count: int, engine: Engine) -> tuple[int, ...]:
    """A prompt of random tokens."""
    return tokens(random.Random(seed), count, engine)


def keep_text(engine: Engine, name: str, context: tuple[int, ...], text: tuple[int, ...]) -> Resident:
    """The KV of a text whose author had a context before it."""
    one = SamplingParams(max_tokens=1)
    request = Request(request_id=name, token_ids=context + text, sampling=one, mode=ReuseMode.OFF, tenant=name)
    for _ in first_token(engine, request):
        pass
    return engine.keep(name, len(context), len(context) + len(text))


def _shares(total: int, count: int) -> list[int]:
    """`total` in `count` whole parts of about equal size."""
    return [(number + 1) * total // count - number * total // count for number in range(count)]


def tokens(lot: random.Random, count: int, engine: Engine) -> tuple[int, ...]:
    """So many tokens by lot."""
    return tuple(lot.choices(range(engine.model_config.vocab_size), k=count))
