"""What a selector may look at is what dense arithmetic gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from agentkv.screening.selectors.propagated_attention import PropagatedAttention
from agentkv.screening.selectors.value_deviation import ValueDeviation
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import SelectorFailed
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.rope import rotate
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView
from dense_oracle import DenseKV, DenseOracle
from engine_driver import keep, prompt_of, run, screened, span_of

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
    engine = Engine(decoder, EngineConfig(store_queries=True, **options))
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
    """Every number of it, from the author's hidden states: stored queries are 8-bit means of their groups."""
    config, oracle = decoder.config, DenseOracle(decoder)
    queries: list[torch.Tensor] = []
    num_queries = config.num_heads * config.head_dim
    hooks = [
        layer.attention.qkv.register_forward_hook(lambda _module, _inputs, out: queries.append(out[:, :num_queries]))
        for layer in decoder.layers
    ]
    _, author, _ = oracle.run(AUTHOR)
    fresh = oracle.run(PROMPT[:START])[1]
    for hook in hooks:
        hook.remove()
    for layer in range(3):
        q = queries[layer][20:70].unflatten(1, (config.num_kv_heads, -1, config.head_dim)).mean(2)
        k = torch.cat([fresh.keys[layer], author.keys[layer][20:70]])
        positions = torch.arange(len(k))
        q = rotate(q, decoder.rope.at_positions(positions[START:]))
        scores = torch.einsum("rkd,skd->krs", q, rotate(k, decoder.rope.at_positions(positions)))
        scores = (scores / config.head_dim**0.5).masked_fill(positions > positions[START:, None], float("-inf"))
        assert (seen[layer][:, : len(k)] - scores.softmax(-1).mean(0)).abs().max() < 1e-2


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


def test_output_change_is_measured_behind_the_output_projection(decoder: Decoder) -> None:
    """With nothing left out nothing changes; with all left out the whole attention output does."""
    outputs: list[torch.Tensor] = []
    hooks = [
        part.register_forward_hook(
            lambda _module, _inputs, out: outputs.append(sum(out) if type(out) is tuple else out)
        )
        for part in (decoder.layers[2].attention, decoder.layers[2])
    ]
    rows = range(len(PROMPT))
    nothing = torch.zeros(len(PROMPT), len(PROMPT), dtype=torch.bool)

    def changes(o: Observation) -> torch.Tensor:
        return torch.stack([o.output_change(2, rows, nothing), o.output_change(2, rows, ~nothing)])

    none, every = look(decoder, rows, changes)
    for hook in hooks:
        hook.remove()
    attention, behind = (out for out in outputs if len(out) == len(PROMPT))
    assert none.abs().max() == 0
    assert torch.allclose(every, attention.norm(dim=1) / behind.norm(dim=1), atol=1e-4)


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


def test_an_exported_resident_comes_back_with_queries_and_lengths(decoder: Decoder) -> None:
    nothing_seen = torch.ones(50, len(PROMPT), dtype=torch.bool)

    def at(o: Observation) -> torch.Tensor:
        return torch.stack([o.output_change(2, SPAN, nothing_seen), o.attention(1, SPAN).amax(1)])

    tail, saw = range(len(PROMPT) - 10, len(PROMPT)), []
    source = Engine(decoder, EngineConfig(store_queries=True))
    exported = source.export(keep(source, AUTHOR, 20, 70).handle)
    for engine in (source, Engine(decoder, EngineConfig(store_queries=True))):
        selector = Look(tail, at)
        run(engine, screened("reader", PROMPT, span_of(engine.load(exported), START), plan=selector))
        saw.append(selector.saw[0])
    assert torch.allclose(saw[0], look(decoder, tail, at), atol=1e-2)
    assert torch.allclose(saw[0], saw[1], atol=1e-6)


@pytest.mark.parametrize("stored", [True, False])
def test_what_no_probe_ran_is_refused_or_asked_of_the_store(decoder: Decoder, stored: bool) -> None:
    """A row that was probed through one layer has no live query above it; a fresh row has no V to differ from."""

    def ask(what: Callable[[Observation], object]) -> object:
        engine = Engine(decoder, EngineConfig(store_queries=stored, levels=(1, 3)))
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
    nothing_seen = torch.ones(len(rows), len(PROMPT), dtype=torch.bool)

    def at(o: Observation) -> torch.Tensor:
        return torch.stack([o.attention(1, rows).amax(1), o.output_change(2, rows, nothing_seen)])

    whole = look(decoder, rows, at)
    monkeypatch.setattr("agentkv_engine.runner.observer.MOST_PROBABILITIES", 7 * 4 * len(PROMPT))
    assert torch.allclose(look(decoder, rows, at), whole, atol=1e-6)
