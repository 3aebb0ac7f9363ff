"""What a selector may look at is what dense arithmetic gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from agentkv.screening.selectors.propagated_attention import PropagatedAttention
from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv.screening.selectors.value_deviation import ValueDeviation
from agentkv.segment.unread import with_unread
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import SelectorFailed
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.rope import rotate
from agentkv_engine.request import Request
from agentkv_engine.reuse import Observation, Probe, RepairPlan, Reread, ReuseView
from dense_oracle import DenseKV, DenseOracle
from engine_driver import ALL_TRACED, ONE, keep, prompt_of, run, screened, span_of

AUTHOR = prompt_of(80, seed=1)
START = 37
PROMPT = prompt_of(START, seed=2) + AUTHOR[20:70] + prompt_of(24, seed=3)
SPAN = range(START, START + 50)


@dataclass(slots=True)
class Look:
    """A selector that probes given rows and hands the observation to a function."""

    rows: Sequence[int]
    at: Callable[[Observation], object]
    depth: int = 3
    saw: list[object] = field(default_factory=list)
    name: str = "look"

    def probe(self, view: ReuseView) -> Probe:
        return Probe(positions=tuple(self.rows), depth=self.depth)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        assert observation is not None
        self.saw.append(self.at(observation))
        return RepairPlan()


@pytest.fixture(params=["qwen2", "qwen2-multi-head", "llama-llama3"])
def decoder(request: pytest.FixtureRequest, small_model: Callable[[str], Path]) -> Decoder:
    return load_decoder(small_model(request.param), dtype=torch.float32, device="cpu")


def look(decoder: Decoder, rows: Sequence[int], at: Callable[[Observation], object], **options: object) -> object:
    engine = Engine(decoder, EngineConfig(trace_layers=ALL_TRACED, **options))
    resident = keep(engine, AUTHOR, 20, 70)
    selector = Look(rows, at)
    run(engine, screened("reader", PROMPT, span_of(resident, START), plan=selector))
    return selector.saw[0]


def stale(decoder: Decoder) -> DenseKV:
    return DenseOracle(decoder).run(AUTHOR)[1][20:70]


@pytest.mark.parametrize("chunk", [9, 4096])
def test_stored_queries_ask_what_the_author_asked(decoder: Decoder, chunk: int) -> None:
    """Queries and keys of the author's context, at the reader's positions."""
    tail = range(len(PROMPT) - 10, len(PROMPT))
    seen = look(
        decoder,
        tail,
        lambda o: torch.stack([o.attention(layer, SPAN) for layer in range(3)]),
        max_rows_per_step=chunk,
    )
    for layer in range(3):
        assert torch.allclose(seen[layer].sum(1), torch.ones(50), atol=1e-5)
    assert_shares(decoder, seen)


def assert_shares(decoder: Decoder, seen: torch.Tensor) -> None:
    """Every number of it, from the author's hidden states: the queries left are of 8 bits."""
    for layer, there in enumerate(author_rows(decoder)):
        probabilities, _ = stale_reading(decoder, layer, there.queries, torch.zeros(START + 50, dtype=torch.bool))
        assert (seen[layer][:, : START + 50] - probabilities.mean(0)).abs().max() < 1e-2


@dataclass(slots=True)
class AuthorRows:
    """What the rows of the resident did in a layer when their author wrote them."""

    queries: torch.Tensor
    outputs: torch.Tensor
    hidden: torch.Tensor


def author_rows(decoder: Decoder) -> list[AuthorRows]:
    config, seen = decoder.config, [[], [], []]
    hooks = []
    for layer in decoder.layers:
        for module, into in ((layer.attention.qkv, 0), (layer.attention.output, 1)):
            hooks.append(module.register_forward_hook(lambda _m, _i, out, into=into: seen[into].append(out)))
    _, _, _ = DenseOracle(decoder).run(AUTHOR)
    for hook in hooks:
        hook.remove()
    hidden = hidden_states(decoder, AUTHOR)
    size = config.num_heads * config.head_dim
    rows = slice(20, 70)
    return [
        AuthorRows(qkv[rows, :size].unflatten(1, (config.num_heads, -1)), output[rows], behind[rows])
        for qkv, output, behind in zip(seen[0], seen[1], hidden, strict=True)
    ]


def hidden_states(decoder: Decoder, token_ids: tuple[int, ...]) -> list[torch.Tensor]:
    """Hidden states behind every layer, from the engine's own forward pass."""
    states: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: states.append(sum(out))) for layer in decoder.layers]
    run(
        Engine(decoder, EngineConfig(trace_layers=ALL_TRACED)),
        Request(request_id="plain", token_ids=token_ids, sampling=ONE),
    )
    for hook in hooks:
        hook.remove()
    return states


def stale_reading(
    decoder: Decoder, layer: int, queries: torch.Tensor, left_out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [H, 50, keys] and attention outputs [50, E] of the author's queries at the reader's positions."""
    config, oracle = decoder.config, DenseOracle(decoder)
    author, fresh = oracle.run(AUTHOR)[1], oracle.run(PROMPT[:START])[1]
    groups = config.num_heads // config.num_kv_heads
    k, v = (
        torch.cat([new, old[20:70]])
        for new, old in ((fresh.keys[layer], author.keys[layer]), (fresh.values[layer], author.values[layer]))
    )
    positions = torch.arange(len(k))
    q = rotate(queries, decoder.rope.at_positions(positions[START:]))
    k = rotate(k, decoder.rope.at_positions(positions)).repeat_interleave(groups, 1)
    scores = torch.einsum("rhd,shd->hrs", q, k) / config.head_dim**0.5
    hidden = (positions > positions[START:, None]) | left_out
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    mixed = torch.einsum("hrs,shd->rhd", probabilities, v.repeat_interleave(groups, 1)).flatten(1)
    return probabilities, decoder.layers[layer].attention.output(mixed)


@torch.inference_mode()
def test_reading_is_what_dense_arithmetic_gives(decoder: Decoder) -> None:
    """Since then: the author's outputs against those over the reader's keys. By what is left out: with and without."""
    rereads = [
        Reread(positions=SPAN[:20], left_out=((5, 12), (12, 30))),
        Reread(positions=SPAN[20:], left_out=((5, 30),)),
    ]
    left_out = torch.zeros(START + 50, dtype=torch.bool)
    left_out[5:30] = True
    seen = look(decoder, [], lambda o: [o.reading(layer, rereads) for layer in ALL_TRACED])
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(decoder.config.hidden_size, 64, generator=generator) / 8
    for layer, (reading, there) in enumerate(zip(seen, author_rows(decoder), strict=True)):
        keys = START + 50
        _, now = stale_reading(decoder, layer, there.queries, torch.zeros(keys, dtype=torch.bool))
        _, without = stale_reading(decoder, layer, there.queries, left_out)
        length = there.hidden.norm(dim=1)
        for change, share in ((now - there.outputs, reading.since_then_R), (now - without, reading.by_left_out_R)):
            expected = (change @ projection).norm(dim=1) / length
            assert torch.allclose(share, expected, rtol=0.05, atol=0.01)
            assert torch.allclose(share, change.norm(dim=1) / length, rtol=0.6, atol=0.02)  # a sketch keeps lengths


def test_rows_that_stand_apart_read_what_they_read_among_others(decoder: Decoder) -> None:
    def at(o: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        every, some = (o.reading(1, [Reread(positions=rows, left_out=((5, 30),))]) for rows in (SPAN, [*SPAN][::3]))
        return torch.stack([every.since_then_R, every.by_left_out_R]), torch.stack(
            [some.since_then_R, some.by_left_out_R]
        )

    every, some = look(decoder, [], at)
    assert torch.allclose(every[:, ::3], some, atol=1e-6)


def test_the_same_context_changes_nothing(decoder: Decoder) -> None:
    """The rows of a prefix that was read in full find what they found, though they lie in a resident."""
    engine = Engine(decoder, EngineConfig(trace_layers=ALL_TRACED))
    resident = keep(engine, AUTHOR, 20, 70)
    selector = Look([], lambda o: [o.reading(layer, [Reread(positions=range(20, 70))]) for layer in ALL_TRACED])
    run(engine, screened("reader", AUTHOR, span_of(resident, 20), plan=selector, tenant="another"))
    for reading in selector.saw[0]:
        assert reading.since_then_R.max() < 0.02
        assert reading.by_left_out_R.max() < 1e-6


@dataclass(slots=True)
class Planned:
    """The rule, and the plan that it made."""

    rule: ReadingChange = field(default_factory=lambda: ReadingChange(ratio=0.2))
    made: RepairPlan | None = None
    name: str = "planned"

    def probe(self, view: ReuseView) -> Probe | None:
        return self.rule.probe(view)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        self.made = self.rule.plan(view, observation)
        return self.made


def test_a_plan_is_the_same_whatever_the_prefix_cache_covers(decoder: Decoder) -> None:
    """The first text stands where its author wrote it: it is read as kept, or as a prefix. The other's author had not
    seen it either way."""
    engine = Engine(decoder, EngineConfig(trace_layers=ALL_TRACED))
    text = keep(engine, AUTHOR, 20, 80, tenant="author")
    engine.release_finished()
    message = keep(engine, prompt_of(30, seed=4), 5, 30, tenant="another author")
    prompt = AUTHOR + prompt_of(30, seed=4)[5:] + prompt_of(9, seed=5)
    spans = with_unread([replace(span_of(text, 20), unseen=(), num_gone=0), span_of(message, 80)])
    plans = []
    for tenant in ("cold", "warm"):
        if tenant == "warm":
            run(engine, Request(request_id="before", token_ids=AUTHOR, sampling=ONE, tenant=tenant))
        selector = Planned()
        run(engine, screened("reader", prompt, *spans, plan=selector, tenant=tenant))
        plans.append(selector.made)
    assert spans[1].unread == ((20, 80),)
    assert len(plans[0].positions) == 5
    assert plans[0] == plans[1]


def test_value_deviation_is_that_of_full_prefill(decoder: Decoder) -> None:
    rows = range(len(PROMPT))
    seen, turned = look(
        decoder,
        rows,
        lambda o: torch.stack(
            [torch.stack([ask(layer, SPAN) for layer in range(3)]) for ask in (o.value_deviation, o.value_turn)]
        ),
    )
    _, full, _ = DenseOracle(decoder).run(PROMPT)
    for layer in range(3):
        change = full.values[layer][SPAN.start : SPAN.stop] - stale(decoder).values[layer]
        assert torch.allclose(seen[layer], change.square().sum(dim=(1, 2)), atol=1e-4)
        now, kept = full.values[layer][SPAN.start : SPAN.stop].flatten(1), stale(decoder).values[layer].flatten(1)
        cosine = (now * kept).sum(1) / (now.norm(dim=1) * kept.norm(dim=1))
        assert torch.allclose(turned[layer], 1 - cosine, atol=1e-4)
    assert seen[0].abs().max() < 1e-9  # layer 0 sees the token alone


def test_rounds_that_run_candidates_see_what_their_own_queries_ask(decoder: Decoder) -> None:
    """Without stored queries the rule probes again; the rows of both rounds are seen as the dense oracle sees them."""
    engine = Engine(decoder, EngineConfig())
    resident = keep(engine, AUTHOR, 20, 70)
    first = PropagatedAttention(ratio=0.2, growth=0.1, rounds=3)
    seen: list[tuple[Probe, ...]] = []

    class Spy:
        name = "spy"
        probe = staticmethod(first.probe)

        def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan | Probe:
            assert observation is not None
            seen.append(observation.probes)
            return first.plan(view, observation)

    answer = run(engine, screened("reader", PROMPT, span_of(resident, START), plan=Spy()))["reader"]
    assert [len(probes) for probes in seen] == [1, 2, 3, 4]
    rows = [position for probe in seen[-1] for position in probe.positions]
    assert len(rows) == len(set(rows)) == 16 + 3 * 5
    assert answer.sources is not None
    assert answer.sources.probe_row_layers == len(rows) * 3
    assert answer.sources.screening_row_layers > 0
    assert answer.sources.repaired == 10


def test_rows_before_the_first_span_are_not_charged_twice(decoder: Decoder) -> None:
    """A probe of all rows runs those before the span for good: they are fresh work, once."""
    engine = Engine(decoder, EngineConfig(levels=(1, 3)))
    resident = keep(engine, AUTHOR, 20, 70)
    selector = ValueDeviation(ratio=0.2)
    answer = run(engine, screened("reader", PROMPT, span_of(resident, START), plan=selector))["reader"]
    assert answer.sources is not None
    assert answer.sources.probe_row_layers == len(PROMPT) - START
    assert answer.sources.repair_row_layers == 10 * 3
    assert answer.sources.fresh_row_layers == (len(PROMPT) - 50) * 3


def test_an_exported_resident_comes_back_with_its_traces(decoder: Decoder) -> None:

    def at(o: Observation) -> torch.Tensor:
        return torch.stack([o.reading(2, [Reread(positions=SPAN)]).since_then_R, o.attention(1, SPAN).amax(1)])

    tail, saw = range(len(PROMPT) - 10, len(PROMPT)), []
    source = Engine(decoder, EngineConfig(trace_layers=ALL_TRACED))
    exported = source.export(keep(source, AUTHOR, 20, 70).handle)
    for engine in (source, Engine(decoder, EngineConfig(trace_layers=ALL_TRACED))):
        selector = Look(tail, at)
        run(engine, screened("reader", PROMPT, span_of(engine.load(exported), START), plan=selector))
        saw.append(selector.saw[0])
    assert torch.allclose(saw[0], look(decoder, tail, at), atol=1e-2)
    assert torch.allclose(saw[0], saw[1], atol=1e-6)


@pytest.mark.parametrize("stored", [True, False])
def test_what_no_probe_ran_is_refused_or_asked_of_the_store(decoder: Decoder, stored: bool) -> None:
    """A row that was probed through one layer has no live query above it; a fresh row has no V to differ from."""

    def ask(what: Callable[[Observation], object]) -> object:
        engine = Engine(decoder, EngineConfig(trace_layers=ALL_TRACED if stored else (), levels=(1, 3)))
        selector = Look(range(START, len(PROMPT)), what, depth=1)
        request = screened("reader", PROMPT, span_of(keep(engine, AUTHOR, 20, 70), START), plan=selector)
        answer = run(engine, request)["reader"]
        assert engine.memory().pinned == 0 or answer.error is None
        return answer.error or selector.saw[0]

    high = ask(lambda o: o.attention(2, SPAN))
    assert isinstance(high, torch.Tensor if stored else SelectorFailed)
    if isinstance(high, torch.Tensor):
        assert high.std(dim=1).min() > 1e-4  # not the uniform attention of an empty query
    assert isinstance(ask(lambda o: o.value_deviation(0, [len(PROMPT) - 1])), SelectorFailed)
    assert isinstance(ask(lambda o: o.value_deviation(2, [START])), SelectorFailed)
    assert isinstance(ask(lambda o: o.attention(0, [len(PROMPT)])), SelectorFailed)


def test_tiles_of_rows_change_nothing(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = range(START, len(PROMPT))
    whole = look(decoder, rows, lambda o: o.attention(1, rows))
    monkeypatch.setattr("agentkv_engine.runner.observer.MOST_ROWS", 7)
    assert torch.allclose(look(decoder, rows, lambda o: o.attention(1, rows)), whole, atol=1e-6)


def test_a_mere_look_runs_no_rows_and_must_name_some_the_second_time(decoder: Decoder) -> None:
    engine = Engine(decoder, EngineConfig(trace_layers=ALL_TRACED))
    span = span_of(keep(engine, AUTHOR, 20, 70), START)
    selector = Look([], lambda o: o.reading(1, [Reread(positions=SPAN)]))
    sources = run(engine, screened("reader", PROMPT, span, plan=selector))["reader"].sources
    assert sources is not None
    assert (sources.probe_row_layers, sources.screening_row_layers > 0) == (0, True)
    again = run(engine, screened("again", PROMPT, span, plan=Insatiable()))["again"]
    assert isinstance(again.error, SelectorFailed)
    assert engine.memory().pinned == 0


@dataclass(slots=True)
class LookThenProbe(Look):
    """Looks before any row has run, then once more with the last rows probed."""

    def probe(self, view: ReuseView) -> Probe:
        return Probe(positions=(), depth=1)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan | Probe:
        assert observation is not None
        if len(observation.probes) == 1:
            self.saw.append(observation.reading(1, [Reread(positions=SPAN, left_out=((5, 30),))]))
            return Probe(positions=tuple(self.rows), depth=3)
        self.saw.append(observation.attention(2, self.rows))
        return RepairPlan()


def test_rows_before_the_first_span_need_not_run_in_full_to_be_looked_at(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, answers, probed = [], [], []
    for few_layers in (8, 1):  # of the small model, 1 layer of 3 is not few, and then is
        monkeypatch.setattr("agentkv_engine.runner.observer.FEW_LAYERS", few_layers)
        for selector in (
            Look([], lambda o: o.reading(1, [Reread(positions=SPAN)])),
            LookThenProbe(range(100, 111), id),
        ):
            engine = Engine(decoder, EngineConfig(trace_layers=(1,)))
            span = span_of(keep(engine, AUTHOR, 20, 70), START)
            answers.append(run(engine, screened("reader", PROMPT, span, plan=selector))["reader"])
            seen.append(selector.saw)
            probed.append(answers[-1].sources.probe_row_layers)
    assert probed[2] - probed[0] == probed[3] - probed[1] == START  # through one layer, for the look
    (full, twice_full, shallow, twice_shallow) = seen
    for here, there in ((full[0], shallow[0]), (twice_full[0], twice_shallow[0])):
        assert torch.allclose(here.since_then_R, there.since_then_R, atol=1e-5)
        assert torch.allclose(here.by_left_out_R, there.by_left_out_R, atol=1e-5)
    assert torch.allclose(twice_full[1], twice_shallow[1], atol=1e-5)
    assert answers[0].token_ids == answers[2].token_ids
    assert answers[1].token_ids == answers[3].token_ids


class Insatiable:
    """Looks, and asks to look again."""

    name = "insatiable"

    def probe(self, view: ReuseView) -> Probe:
        return Probe(positions=(), depth=1)

    def plan(self, view: ReuseView, observation: Observation | None) -> Probe:
        return self.probe(view)
