"""Stages in processes of their own give what one process gives, whatever is asked and in whatever order it runs."""

import random
from collections.abc import Iterator

import pytest
import torch

from agentkv_engine.engine import Engine
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.request import Output, Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Probe
from agentkv_engine.scheduler.token_throttling import TokenThrottling
from engine_driver import ONE, Answer, FixedPlan, engine_of, keep, run, screened, span_of, steps
from pipeline_asks import AUTHOR, READER, SELECTORS, EvenThenOdd, ask, assert_alike, requests
from pipelines import LEVELS, SharedStages


@pytest.fixture(scope="module")
def stages(small_model) -> Iterator[SharedStages]:
    shared = SharedStages(small_model("qwen2"))
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def decoder(small_model):
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")


def both(stages: SharedStages, decoder, num_blocks: int = 100, **options) -> tuple[Engine, Engine]:
    """An engine over stages, and one in this process."""
    return stages.engine(num_blocks, **options), engine_of(decoder, num_blocks, levels=LEVELS, **options)


@pytest.mark.parametrize("throttled", [False, True])
def test_everything_that_can_be_asked_comes_out_the_same(stages, decoder, throttled) -> None:
    staged, here = both(stages, decoder, max_rows_per_step=24)
    if throttled:
        staged._scheduler._budget = TokenThrottling(num_stages=2, min_prefill=8)
    expected = run(here, *requests())
    answers = run(staged, *requests())
    assert_alike(answers, expected)
    assert len(answers["constrained"].token_ids) == 6
    for name in ("seeded", "scored"):
        for told, wanted in (
            (answers[name].logprobs, expected[name].logprobs),
            (answers[name].prompt_logprobs or (), expected[name].prompt_logprobs or ()),
        ):
            pairs = [(a, b) for a, b in zip(told, wanted, strict=True) if a is not None and b is not None]
            assert all(a.token_id == b.token_id and abs(a.logprob - b.logprob) < 1e-4 for a, b in pairs)


def test_pooled_states_are_summed_over_chunks(stages, decoder) -> None:
    pooled = []
    for engine in both(stages, decoder, max_rows_per_step=16):
        engine.add(ask("a", 60, 8, output=Output.POOLED_STATES))
        outputs = [output for _ in range(12) if engine.has_work for output in engine.step()]
        pooled.append(outputs[-1].pooled)
    assert torch.allclose(pooled[0], pooled[1], atol=1e-5)


def test_a_constraint_that_raises_ends_its_request_alone(stages) -> None:
    class Broken(EvenThenOdd):
        def accept(self, token_id: int) -> None:
            if len(self.accepted) == 2:
                raise RuntimeError("no more")
            super().accept(token_id)

    engine = stages.engine()
    answers = run(engine, ask("broken", 20, 7, constraint=Broken()), ask("fine", 20, 9))
    assert "no more" in str(answers["broken"].error)
    assert len(answers["fine"].token_ids) == 12


@pytest.mark.parametrize("rule", SELECTORS)
def test_screened_requests_make_the_same_plans(stages, decoder, rule) -> None:
    answers, plans = [], []
    for engine in both(stages, decoder, max_rows_per_step=24):
        resident = keep(engine, AUTHOR, 0, 48, mode=ReuseMode.OFF)
        plan = SELECTORS[rule]()
        reader = screened("reader", READER, span_of(resident, 10), plan=plan, sampling=SamplingParams(max_tokens=8))
        answers.append(run(engine, reader, ask("beside", 30, 11)))
        plans.append(plan)
        engine.release_finished()
        assert engine.memory().pinned == 0
    assert_alike(*answers)
    staged, here = (got["reader"].sources for got in answers)
    assert staged == here
    if rule == "probed":
        staged_seen, here_seen = (plan.seen[0].attention_LRP for plan in plans)
        assert torch.allclose(staged_seen, here_seen, atol=1e-5)


def test_residents_leave_and_come_back(stages, decoder) -> None:
    staged, here = both(stages, decoder)
    kept = [engine.export(keep(engine, AUTHOR, 0, 48, mode=ReuseMode.OFF).handle) for engine in (staged, here)]
    assert torch.allclose(kept[0].k_LNKD, kept[1].k_LNKD, atol=1e-5)
    assert torch.allclose(kept[0].v_LNKD, kept[1].v_LNKD, atol=1e-5)
    for layer in range(3):
        assert torch.equal(kept[0].traces[layer].values_SHD, kept[1].traces[layer].values_SHD)
    back = [engine.load(tensors) for engine, tensors in zip((staged, here), reversed(kept), strict=True)]
    again = staged.export(back[0].handle)
    assert torch.equal(again.k_LNKD, kept[1].k_LNKD)
    assert torch.equal(again.traces[2].sketches_SZ, kept[1].traces[2].sketches_SZ)


CROWDED = (3, 4, 5)
"""Seeds whose schedules have preemptions."""


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules(stages, decoder, seed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests come and are aborted at any time, in a pool that is too small for them: preemptions, chunks,
    reuse, two to four steps under way."""
    draw = random.Random(seed)
    policy = TokenThrottling(num_stages=2, min_prefill=4) if seed % 2 else None
    engine = stages.engine(draw.choice([12, 16]), max_rows_per_step=draw.choice([7, 40]), max_sequences=4)
    if policy is not None:
        engine._scheduler._budget = policy
    monkeypatch.setattr(stages.runner, "max_under_way", 2 + seed % 3)
    alone = engine_of(decoder, 100, levels=LEVELS)
    residents = [keep(e, AUTHOR, 0, 48, mode=ReuseMode.OFF) for e in (engine, alone)]

    def make(number: int, kept) -> Request:
        lot = random.Random(100 * seed + number)
        sampling = SamplingParams(max_tokens=lot.randint(1, 40), temperature=0.8 * lot.randint(0, 1), seed=number)
        if lot.random() < 0.4:
            depths = {p: lot.randint(1, 3) for p in range(10, 58) if lot.random() < 0.4}
            probe = Probe(positions=tuple(range(70, 78)), depth=lot.randint(1, 3)) if lot.random() < 0.6 else None
            plan = FixedPlan(depths, probe)
            return screened(str(number), READER, span_of(kept, 10), plan=plan, sampling=sampling, tenant=str(number))
        return ask(str(number), lot.randint(1, 90), lot.randint(0, 3), sampling=sampling)

    preempted: list[str] = []
    preempt = engine._scheduler._preempt
    engine._scheduler._preempt = lambda seq: (preempted.append(seq.request_id), preempt(seq))[1]
    answers: dict[str, Answer] = {}
    aborted: set[str] = set()
    waiting, running = list(range(10)), steps(engine, answers)
    while waiting or engine.has_work:
        if waiting and draw.random() < 0.6:
            engine.add(make(waiting.pop(0), residents[0]))
        if draw.random() < 0.03:
            aborted.add(name := str(draw.randrange(10)))
            engine.abort(name)
        next(running, None)
        if not engine.has_work:
            running = steps(engine, answers)
    engine.release_finished()
    assert engine.memory().pinned == 0
    run(engine, ask("last", 5, 1, sampling=ONE))
    assert len(stages.runner._told._sequences) == 1, "stages are not told of requests that have ended"
    assert preempted or seed not in CROWDED
    for number in set(range(10)) - {int(name) for name in aborted}:
        request, got = make(number, residents[1]), answers[str(number)]
        assert got.sources is not None
        reads_less = bool(got.sources.fallbacks) or str(number) in preempted  # the segment may be gone by now
        if request.spans and reads_less:
            assert len(got.token_ids) == request.sampling.max_tokens
        else:
            assert got.token_ids == run(alone, request)[str(number)].token_ids


def test_orders_come_before_activations_and_several_steps_are_under_way(stages) -> None:
    engine = stages.engine(max_rows_per_step=16)
    stages.runner.times.clear()
    most = 0
    engine.add(ask("a", 200, 12, sampling=ONE))
    while engine.has_work:
        engine.step()
        most = max(most, len(engine._under_way))
    assert most == 1  # two, of which `step` has taken one
    second = [times for times in stages.runner.times if times.stage == 1]
    assert len(second) >= 10
    assert all(times.ordered <= times.built <= times.arrived <= times.done for times in second)
    assert stages.runner.bytes_ordered < 200


def test_an_order_of_decodes_takes_few_bytes(stages) -> None:
    engine = stages.engine()
    for number in range(8):
        engine.add(ask(f"{number}", 20, number, sampling=SamplingParams(max_tokens=12)))
    sizes = []
    while engine.has_work:
        engine.step()
        sizes.append(stages.runner.bytes_ordered)
    assert min(sizes) < 8 * 20 + 60  # five numbers for each


def test_a_wait_ends_when_another_step_could_be_started(stages) -> None:
    engine = stages.engine()
    engine.add(ask("a", 20, 13))
    engine.interrupt()
    assert engine.step() == []
    assert len(engine._under_way) == 1
    engine.add(ask("b", 20, 14))
    assert {output.request_id for output in engine.step()} == {"a"}
    assert len(engine._under_way) == 1
    answers = run(engine)
    assert {name: len(answer.token_ids) for name, answer in answers.items()} == {"a": 11, "b": 12}


def test_three_stages(small_model, decoder) -> None:
    shared = SharedStages(small_model("qwen2"), num_stages=3)
    try:
        staged, here = both(shared, decoder, max_rows_per_step=24)
        answers = []
        for engine in (staged, here):
            resident = keep(engine, AUTHOR, 0, 48, mode=ReuseMode.OFF)
            rule = SELECTORS["propagated"]()
            reader = screened("r", READER, span_of(resident, 10), plan=rule, sampling=SamplingParams(max_tokens=8))
            answers.append(run(engine, reader, *requests()))
        assert_alike(*answers)
    finally:
        shared.close()
