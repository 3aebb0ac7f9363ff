"""What the engine promises beside its numbers: sharing, isolation, limits, preemption, aborts."""

from dataclasses import dataclass

import pytest
import torch

from agentkv.screening.selectors.registry import parse_selector
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import PromptTooLong, RequestRefused, SelectorFailed, UnknownHandle
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.request import FinishReason, Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Observation, PlacedSpan, Probe, RepairPlan, ReuseView
from engine_driver import FixedPlan, keep, prompt_of, run, span_of, steps

ONE = SamplingParams(max_tokens=1)


@pytest.fixture
def decoder(small_model):
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")


def engine_of(decoder, num_blocks: int, **options) -> Engine:
    block_bytes = 16 * decoder.config.kv_values_per_token * 4
    return Engine(decoder, EngineConfig(kv_memory=num_blocks * block_bytes, **options))


def screened(request_id: str, prompt, *spans, plan=None, **options) -> Request:
    return Request(
        request_id=request_id,
        token_ids=prompt,
        mode=ReuseMode.SCREENED,
        spans=spans,
        selector=plan or FixedPlan({}),
        **{"sampling": ONE, **options},
    )


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


def test_an_exact_prefix_is_found_again_and_gives_the_same_answer(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(70, seed=2)
    options = {"token_ids": prompt, "sampling": SamplingParams(max_tokens=8), "return_logits": True}
    cold = run(engine, Request(request_id="cold", **options))["cold"]
    warm = run(engine, Request(request_id="warm", **options))["warm"]
    off = run(engine, Request(request_id="off", mode=ReuseMode.OFF, **options))["off"]
    assert (cold.sources.prefix, warm.sources.prefix, off.sources.prefix) == (0, 64, 0)
    assert cold.token_ids == warm.token_ids == off.token_ids
    assert (warm.logits - off.logits).abs().max() < 1e-4


def test_generated_tokens_are_a_prefix_too(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(30, seed=3)
    first = run(engine, Request(request_id="a", token_ids=prompt, sampling=SamplingParams(max_tokens=40)))["a"]
    longer = prompt + first.token_ids + prompt_of(5, seed=4)
    second = run(engine, Request(request_id="b", token_ids=longer, sampling=ONE))["b"]
    assert second.sources.prefix == 64  # 69 tokens have KV: the last sampled one has none


def test_a_whole_prompt_in_the_prefix_index_computes_its_last_row(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(64, seed=5)
    cold = run(engine, Request(request_id="a", token_ids=prompt, sampling=ONE))["a"]
    warm = run(engine, Request(request_id="b", token_ids=prompt, sampling=ONE))["b"]
    assert warm.token_ids == cold.token_ids
    assert (warm.sources.prefix, warm.sources.computed) == (63, 1)


def test_tenants_share_nothing(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(64, seed=6)
    run(engine, Request(request_id="a", token_ids=prompt, tenant="ann", sampling=ONE))
    other = run(engine, Request(request_id="b", token_ids=prompt, tenant="bob", sampling=ONE))["b"]
    assert other.sources.prefix == 0


def test_screened_keys_never_reach_exact_requests(decoder) -> None:
    engine = engine_of(decoder, 100)
    author = prompt_of(80, seed=7)
    resident = keep(engine, author, 20, 80)
    reader = prompt_of(18, seed=8) + author[20:80] + prompt_of(6, seed=9)
    first = run(engine, screened("a", reader, span_of(resident, 18)))["a"]
    again = run(engine, screened("b", reader, span_of(resident, 18)))["b"]
    exact = run(engine, Request(request_id="c", token_ids=reader, sampling=ONE, return_logits=True))["c"]
    off = run(engine, Request(request_id="d", token_ids=reader, sampling=ONE, mode=ReuseMode.OFF, return_logits=True))[
        "d"
    ]
    assert first.sources.reused == 60
    assert again.sources.prefix == 80
    assert again.token_ids == first.token_ids
    assert exact.sources.prefix == 16, "only the block before the span is exact"
    assert (exact.logits - off.logits).abs().max() < 1e-4


def test_a_screened_hit_is_shown_to_the_selector_with_the_depth_spent(decoder) -> None:
    engine = engine_of(decoder, 100)
    author = prompt_of(64, seed=10)
    resident = keep(engine, author, 0, 64, mode=ReuseMode.OFF, tenant="x")
    reader = prompt_of(16, seed=11) + author + prompt_of(16, seed=12)
    run(engine, screened("a", reader, span_of(resident, 16), plan=FixedPlan(dict.fromkeys(range(16, 48), 3))))
    plan = FixedPlan({})
    run(engine, screened("b", reader + prompt_of(4, seed=13), plan=plan))
    (view,) = plan.views
    assert view.num_prefix == 48
    assert [(span.start, span.end, span.handle, span.hops) for span in view.spans] == [(48, 96, None, 1)]
    assert not view.spans[0].context_changed


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


def test_preemption_changes_nothing(decoder) -> None:
    sixty = SamplingParams(max_tokens=60)
    requests = [
        Request(request_id=str(n), token_ids=prompt_of(40, seed=30 + n), sampling=sixty, return_logits=True)
        for n in range(4)
    ]
    small, large = engine_of(decoder, 14, max_rows_per_step=32), engine_of(decoder, 100)
    squeezed, free = run(small, *requests), run(large, *requests)
    assert small.num_preemptions > 0
    assert large.num_preemptions == 0
    for request_id, answer in free.items():
        assert squeezed[request_id].token_ids == answer.token_ids
        assert squeezed[request_id].logits.shape == answer.logits.shape
        assert (squeezed[request_id].logits - answer.logits).abs().max() < 1e-4


def test_a_frozen_plan_survives_preemption(decoder) -> None:
    """The plan is made once; after a preemption the same rows are repaired, without a second probe."""
    engine = engine_of(decoder, 16, max_rows_per_step=24)
    author = prompt_of(60, seed=40)
    resident = keep(engine, author, 0, 48, mode=ReuseMode.OFF)
    reader = prompt_of(10, seed=41) + author[:48] + prompt_of(20, seed=42)
    plan = FixedPlan(dict.fromkeys(range(10, 30), 3), Probe(positions=tuple(range(70, 78)), depth=3))
    old = Request(request_id="old", token_ids=prompt_of(60, seed=43), sampling=SamplingParams(max_tokens=110))
    young = screened("young", reader, span_of(resident, 10), plan=plan, sampling=SamplingParams(max_tokens=70))
    answers = run(engine, old, young)
    assert engine.num_preemptions > 0
    assert len(plan.seen) == 1
    alone = engine_of(decoder, 100)
    resident = keep(alone, author, 0, 48, mode=ReuseMode.OFF)
    again = FixedPlan(plan.depths, plan.probe_rows)
    request = screened("young", reader, span_of(resident, 10), plan=again, sampling=SamplingParams(max_tokens=70))
    assert answers["young"].token_ids == run(alone, request)["young"].token_ids


def test_a_span_that_a_prefix_hit_had_hidden_is_planned_anew(decoder) -> None:
    """Between two admissions the prefix that hid the segment is dropped: its rows must not be read unrepaired."""
    engine = engine_of(decoder, 60)
    author = prompt_of(64, seed=44)
    resident = keep(engine, author, 0, 64, mode=ReuseMode.OFF, tenant="x")
    reader = prompt_of(16, seed=45) + author + prompt_of(9, seed=46)
    exact = Request(request_id="first", token_ids=reader, sampling=ONE, return_logits=True)
    expected = run(engine, exact)["first"]
    plan = FixedPlan(dict.fromkeys(range(16, 80), 3))
    engine.add(screened("a", reader, span_of(resident, 16), plan=plan, return_logits=True))
    scheduler = engine._scheduler
    scheduler.schedule()
    (seq,) = scheduler.running
    assert seq.held.view.num_prefix == 80
    scheduler._preempt(seq)
    for key in list(engine._prefixes._exact):
        engine._pool.drop(engine._prefixes._exact[key].keeper_id)
    answers = {}
    for _ in steps(engine, answers):
        pass
    assert len(plan.views) == 1
    assert answers["a"].sources.repaired == 64
    assert (answers["a"].logits - expected.logits).abs().max() < 1e-4


def test_the_last_row_of_the_prompt_stays_computed_after_a_preemption(decoder) -> None:
    author = prompt_of(64, seed=47)
    reader = prompt_of(20, seed=48) + author[:60]
    answers = []
    for preempted in (False, True):
        engine = engine_of(decoder, 60)
        resident = keep(engine, author, 0, 60, mode=ReuseMode.OFF)
        ten = SamplingParams(max_tokens=10)
        engine.add(screened("a", reader, span_of(resident, 20), sampling=ten, return_logits=True, tenant="b"))
        got = {}
        for number, _ in enumerate(steps(engine, got)):
            if preempted and number == 5:
                engine._scheduler._preempt(engine._scheduler.running[0])
                for entry in [*engine._prefixes._exact.values(), *engine._prefixes._screened.values()]:
                    engine._pool.drop(entry.keeper_id)
        answers.append(got["a"])
    assert answers[0].token_ids == answers[1].token_ids
    assert (answers[0].logits - answers[1].logits).abs().max() < 1e-4


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


def test_what_one_rule_repaired_is_not_read_by_another(decoder) -> None:
    engine = engine_of(decoder, 100)
    author = prompt_of(64, seed=52)
    resident = keep(engine, author, 0, 64, mode=ReuseMode.OFF)
    reader = prompt_of(16, seed=53) + author + prompt_of(9, seed=54)
    run(engine, screened("a", reader, span_of(resident, 16), plan=parse_selector("repair_none")))
    again = run(engine, screened("b", reader, span_of(resident, 16), plan=parse_selector("repair_none")))["b"]
    thorough = run(engine, screened("c", reader, span_of(resident, 16), plan=parse_selector("repair_boundary(64)")))[
        "c"
    ]
    assert again.sources.prefix == 80
    assert (thorough.sources.prefix, thorough.sources.repaired) == (16, 64)


def test_forced_logits_come_for_every_token_whatever_the_prefix_index_holds(decoder) -> None:
    engine = engine_of(decoder, 100, max_rows_per_step=16)
    prompt, reply = prompt_of(20, seed=55), prompt_of(60, seed=56)
    request = Request(request_id="a", token_ids=prompt, forced_output=reply, return_logits=True)
    engine.add(request)
    answers = {}
    for number, _ in enumerate(steps(engine, answers)):
        if number == 3:
            engine._scheduler._preempt(engine._scheduler.running[0])
            run_beside = Request(request_id="b", token_ids=prompt, forced_output=reply)
            engine.add(run_beside)
            engine._scheduler._waiting.reverse()
            engine._scheduler._max_sequences = 1
    assert answers["a"].token_ids == reply
    assert len(answers["a"].logits) == len(reply)


def test_leaves_of_the_prefix_index_go_before_their_roots(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(160, seed=57)
    run(engine, Request(request_id="a", token_ids=prompt[:80], sampling=ONE))
    run(engine, Request(request_id="b", token_ids=prompt, sampling=ONE))
    for left in range(9, 0, -1):
        victim = next(iter(engine._pool.policy.candidates()))
        engine._pool.drop(victim)
        assert len(engine._prefixes.match(prompt, "", rule=None)) == left


def test_abort_at_any_moment_frees_everything(decoder) -> None:
    author = prompt_of(60, seed=50)
    for moment in range(12):
        engine = engine_of(decoder, 40, max_rows_per_step=8)
        resident = keep(engine, author, 0, 60, mode=ReuseMode.OFF)
        engine.step()
        kept = engine.memory()
        reader = prompt_of(9, seed=51) + author + prompt_of(9, seed=52)
        plan = FixedPlan(dict.fromkeys(range(20, 40), 3), Probe(positions=tuple(range(60, 78)), depth=3))
        engine.add(screened("a", reader, span_of(resident, 9), plan=plan, sampling=SamplingParams(max_tokens=4)))
        for _ in range(moment):
            engine.step()
        engine.abort("a")
        engine.check()
        assert not engine.has_work
        assert engine.memory().pinned == kept.pinned == 0
        assert run(engine, Request(request_id="b", token_ids=reader, sampling=ONE))["b"].finish_reason


def test_an_abort_in_a_shared_prefill_leaves_the_other_reader_alone(decoder) -> None:
    author = prompt_of(60, seed=53)
    readers = [prompt_of(9 + n, seed=54 + n) + author + prompt_of(40, seed=56 + n) for n in range(2)]
    engine = engine_of(decoder, 60, max_rows_per_step=60)
    resident = keep(engine, author, 0, 60, mode=ReuseMode.OFF)
    for n, reader in enumerate(readers):
        engine.add(screened(f"r{n}", reader, span_of(resident, 9 + n), return_logits=True))
    engine.step()  # the first has all its rows but is not released yet, the second is in the middle of its prompt
    engine.abort("r0")
    engine.release(resident.handle)
    answers = {}
    for _ in steps(engine, answers):
        pass
    alone = engine_of(decoder, 60)
    resident = keep(alone, author, 0, 60, mode=ReuseMode.OFF)
    expected = run(alone, screened("r1", readers[1], span_of(resident, 10), return_logits=True))["r1"]
    assert answers["r1"].sources.reused == 60
    assert (answers["r1"].logits - expected.logits).abs().max() < 1e-4
    engine.step()
    assert engine.memory().pinned == 0


def test_nobody_starves(decoder) -> None:
    """Short requests keep coming; a long one gets through in a bounded number of steps."""
    engine = engine_of(decoder, 60, max_rows_per_step=16, max_sequences=4)
    answers = {}
    engine.add(Request(request_id="long", token_ids=prompt_of(300, seed=60), sampling=SamplingParams(max_tokens=4)))
    for n in range(80):
        engine.add(
            Request(request_id=f"s{n}", token_ids=prompt_of(12, seed=61 + n), sampling=SamplingParams(max_tokens=3))
        )
    for count, _ in enumerate(steps(engine, answers)):
        if "long" in answers and answers["long"].finish_reason:
            assert count < 300 / (16 - 4) + 4 + 10
            break
    assert sum(answer.finish_reason is not None for answer in answers.values()) > 1


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
