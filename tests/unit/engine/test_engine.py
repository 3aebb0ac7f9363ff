"""What the engine promises beside its numbers: one copy for all, limits, typed refusals, ways to end."""

from dataclasses import dataclass

import pytest

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import PromptTooLong, RequestRefused, SelectorFailed, UnknownHandle
from agentkv_engine.request import FinishReason, Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Observation, PlacedSpan, Probe, RepairPlan, ReuseView
from engine_driver import ONE, FixedPlan, engine_of, keep, prompt_of, run, screened, span_of


def test_five_readers_of_one_segment_hold_one_copy_of_it(decoder) -> None:
    engine = engine_of(decoder, 200)
    author = prompt_of(16 * 40, seed=1)
    resident = keep(engine, author, 8, 8 + 600, mode=ReuseMode.OFF)
    engine.step()
    before = engine.memory().kept
    for n in range(5):
        reader = prompt_of(3 + 7 * n, seed=10 + n) + author[8:608] + prompt_of(5, seed=20 + n)
        four = SamplingParams(max_tokens=4)
        engine.add(screened(f"r{n}", reader, span_of(resident, 3 + 7 * n), tenant=str(n), sampling=four))
    engine.step()
    pinned = engine.memory().pinned
    private = [-(-(3 + 7 * n + 5 + 1) // 16) for n in range(5)]
    assert pinned == 600 // 16 + 1 + sum(private), "a reader pins the segment's blocks and what it computes itself"
    while engine.has_work:
        engine.step()
    assert engine.memory().kept <= before + sum(private) + 5


def test_a_prompt_that_can_never_fit_is_refused_with_the_tokens_that_would(decoder) -> None:
    engine = engine_of(decoder, 4)
    with pytest.raises(PromptTooLong, match="at most 63"):
        engine.add(Request(request_id="a", token_ids=prompt_of(64, seed=14)))
    short = engine_of(decoder, 100, context_length=32)
    with pytest.raises(PromptTooLong, match="at most 31"):
        short.add(Request(request_id="a", token_ids=prompt_of(32, seed=14)))
    fits = run(engine, Request(request_id="b", token_ids=prompt_of(63, seed=14), sampling=SamplingParams(max_tokens=9)))
    assert fits["b"].finish_reason is FinishReason.LENGTH
    assert len(fits["b"].token_ids) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_ids": ()}, "empty"),
        ({"token_ids": (1, 99_999)}, "0..480"),
        ({"sampling": SamplingParams(max_tokens=0)}, "at least 1"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, "temperature"),
        ({"forced_output": ()}, "forced output"),
        ({"forced_output": (1, 99_999)}, "0..480"),
        ({"sampling": SamplingParams(seed=1 << 64)}, "seed"),
        ({"mode": ReuseMode.SCREENED, "spans": (PlacedSpan(start=0, end=2, handle=1, resident_start=-1),)}, "outside"),
        ({"mode": ReuseMode.SCREENED, "spans": (PlacedSpan(start=0, end=9, handle=1),)}, "outside the prompt"),
        ({"mode": ReuseMode.SCREENED, "spans": (PlacedSpan(start=0, end=2, handle=1),)}, "selector"),
    ],
)
def test_requests_that_can_never_run_are_refused(decoder, options: dict, message: str) -> None:
    engine = engine_of(decoder, 10)
    with pytest.raises(RequestRefused, match=message):
        engine.add(Request(**{"request_id": "a", "token_ids": (1, 2, 3), **options}))
    assert not engine.has_work


def test_a_span_whose_tokens_differ_from_its_resident_is_refused(decoder) -> None:
    engine = engine_of(decoder, 100)
    resident = keep(engine, prompt_of(40, seed=15), 0, 40)
    with pytest.raises(RequestRefused, match="differ in tokens"):
        engine.add(screened("a", prompt_of(50, seed=16), span_of(resident, 5)))


def test_a_segment_that_is_gone_is_prefilled_and_counted(decoder) -> None:
    engine = engine_of(decoder, 100)
    author = prompt_of(40, seed=17)
    resident = keep(engine, author, 0, 40)
    reader = prompt_of(5, seed=18) + author
    engine.release(resident.handle)
    answer = run(engine, screened("a", reader, span_of(resident, 5)))["a"]
    assert (answer.sources.computed, answer.sources.fallbacks) == (45, (("segment_gone", 1),))
    with pytest.raises(UnknownHandle, match="released or evicted"):
        engine.release(resident.handle)


def test_a_span_that_does_not_fit_beside_its_private_rows_is_prefilled(decoder) -> None:
    engine = engine_of(decoder, 10)
    author = prompt_of(120, seed=19)
    resident = keep(engine, author, 0, 112)
    reader = prompt_of(20, seed=20) + author[:112]
    plan = FixedPlan(dict.fromkeys(range(20, 132), 3))
    answer = run(engine, screened("a", reader, span_of(resident, 20), plan=plan))["a"]
    assert ("no_room", 1) in answer.sources.fallbacks
    off = run(engine, Request(request_id="b", token_ids=reader, sampling=ONE, mode=ReuseMode.OFF))["b"]
    assert answer.token_ids == off.token_ids


@dataclass(frozen=True, slots=True)
class Broken:
    """A selector with one fault."""

    fault: str

    @property
    def name(self) -> str:
        return f"broken({self.fault})"

    def probe(self, view: ReuseView) -> Probe | None:
        if self.fault == "unsorted probe":
            return Probe(positions=(5, 4), depth=1)
        return Probe(positions=(view.num_tokens - 1,), depth=1) if self.fault == "raises after the probe" else None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        if self.fault.startswith("raises"):
            raise ZeroDivisionError("planted")
        return (
            RepairPlan(positions=(0,), depths=(1,))
            if self.fault == "outside"
            else RepairPlan(positions=(20,), depths=(9,))
        )


@pytest.mark.parametrize("fault", ["raises", "raises after the probe", "unsorted probe", "outside", "too deep"])
def test_a_broken_selector_ends_its_own_request_only(decoder, fault: str) -> None:
    engine = engine_of(decoder, 60)
    author = prompt_of(40, seed=49)
    resident = keep(engine, author, 0, 40, mode=ReuseMode.OFF)
    other = Request(request_id="other", token_ids=prompt_of(30, seed=50), sampling=SamplingParams(max_tokens=9))
    plan = Broken(fault)
    answers = run(engine, other, screened("a", prompt_of(10, seed=51) + author, span_of(resident, 10), plan=plan))
    assert isinstance(answers["a"].error, SelectorFailed)
    assert len(answers["other"].token_ids) == 9
    engine.step()
    assert engine.memory().pinned == 0


def test_same_seed_same_tokens_and_other_seeds_differ(decoder) -> None:
    def sampled(seed: int) -> tuple[int, ...]:
        sampling = SamplingParams(max_tokens=20, temperature=1.0, seed=seed)
        return run(engine_of(decoder, 50), Request(request_id="a", token_ids=(1, 2, 3), sampling=sampling))[
            "a"
        ].token_ids

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_stop_ids_and_finish_end_a_request_and_its_keys_can_be_kept(decoder) -> None:
    engine = engine_of(decoder, 50)
    free = run(
        engine, Request(request_id="a", token_ids=prompt_of(20, seed=70), sampling=SamplingParams(max_tokens=9))
    )["a"]
    stop = SamplingParams(max_tokens=9, stop_token_ids=frozenset({free.token_ids[4]}))
    stopped = run(engine, Request(request_id="b", token_ids=prompt_of(20, seed=70), sampling=stop))["b"]
    first = free.token_ids.index(free.token_ids[4])
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.finish_reason is FinishReason.STOP

    engine.add(Request(request_id="c", token_ids=prompt_of(20, seed=71), sampling=SamplingParams(max_tokens=9)))
    for _ in range(4):
        engine.step()
    engine.finish("c")
    assert engine.keep("c", 0, 22).num_tokens == 22
    with pytest.raises(RequestRefused, match="keep a part that is computed"):
        engine.keep("c", 0, 40)
    engine.step()
    with pytest.raises(UnknownHandle):
        engine.keep("c", 0, 22)


def test_levels_are_validated(decoder) -> None:
    for levels in ((3, 2), (0, 3), (1, 2), ()):
        with pytest.raises(ValueError, match="ascending depths"):
            Engine(decoder, EngineConfig(levels=levels))
