"""Preemption, aborts and fairness: nothing is lost, leaked or read unrepaired."""

from agentkv.screening.selectors.propagated_attention import PropagatedAttention
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Probe
from engine_driver import ONE, FixedPlan, engine_of, keep, prompt_of, run, screened, span_of, steps


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


def test_rounds_of_probes_survive_chunks_and_preemption(decoder) -> None:
    """A rule that runs its candidates in rounds makes the same plan in a crowded pool, and leaves no scratch behind."""
    author = prompt_of(60, seed=40)
    reader = prompt_of(10, seed=41) + author[:48] + prompt_of(20, seed=42)
    rule = PropagatedAttention(ratio=0.25, growth=0.1, rounds=3)
    answers = []
    for num_blocks, chunk in ((18, 7), (100, 4096)):
        engine = engine_of(decoder, num_blocks, max_rows_per_step=chunk)
        resident = keep(engine, author, 0, 48, mode=ReuseMode.OFF)
        old = Request(request_id="old", token_ids=prompt_of(60, seed=43), sampling=SamplingParams(max_tokens=100))
        young = screened("young", reader, span_of(resident, 10), plan=rule, sampling=SamplingParams(max_tokens=40))
        answers.append(run(engine, old, young)["young"])
        engine.release_finished()
        assert engine.memory().pinned == 0
    crowded, free = answers
    assert crowded.token_ids == free.token_ids
    assert crowded.sources is not None
    assert free.sources is not None
    assert crowded.sources.repaired == free.sources.repaired == 12
    assert free.sources.probe_row_layers == (16 + 3 * 5) * 3


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
    (seq,) = scheduler._running
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
                engine._scheduler._preempt(engine._scheduler._running[0])
                for entry in [*engine._prefixes._exact.values(), *engine._prefixes._screened.values()]:
                    engine._pool.drop(entry.keeper_id)
        answers.append(got["a"])
    assert answers[0].token_ids == answers[1].token_ids
    assert (answers[0].logits - answers[1].logits).abs().max() < 1e-4


def test_forced_logits_come_for_every_token_whatever_the_prefix_index_holds(decoder) -> None:
    engine = engine_of(decoder, 100, max_rows_per_step=16)
    prompt, reply = prompt_of(20, seed=55), prompt_of(60, seed=56)
    request = Request(request_id="a", token_ids=prompt, forced_output=reply, return_logits=True)
    engine.add(request)
    answers = {}
    for number, _ in enumerate(steps(engine, answers)):
        if number == 3:
            engine._scheduler._preempt(engine._scheduler._running[0])
            run_beside = Request(request_id="b", token_ids=prompt, forced_output=reply)
            engine.add(run_beside)
            engine._scheduler._waiting.reverse()
            engine._scheduler._max_sequences = 1
    assert answers["a"].token_ids == reply
    assert len(answers["a"].logits) == len(reply)


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
