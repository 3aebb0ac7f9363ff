"""A fault in the middle of something (a copy, a look, a call of the middleware's) leaks no block and ends no other
request."""

import dataclasses

import numpy as np
import pytest
import torch

from agentkv_engine.cache.block_pool import LeastRecentlyUsed
from agentkv_engine.engine import Engine
from agentkv_engine.errors import OutOfMemory, RunnerLost
from agentkv_engine.model.pooled import PooledStates
from agentkv_engine.request import Output, Request, SamplingParams
from agentkv_engine.reuse import Probe, RepairPlan
from agentkv_engine.scheduler.budget import Spending, StepBudget
from agentkv_engine.scheduler.sequence import Rows
from engine_driver import ONE, FixedPlan, engine_of, keep, prompt_of, run, screened, span_of
from host_driver import AUTHOR, OTHER, Host

TOO_MUCH = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
READER = prompt_of(21, seed=3) + AUTHOR[10:90] + prompt_of(9, seed=4) + OTHER[5:50] + prompt_of(7, seed=5)


class Raising:
    """Stands for a function; raises an error when it is called for the n-th time, and always after."""

    def __init__(self, error: Exception, function=lambda *_arguments, **_options: None, *, at: int = 1) -> None:
        self._error, self._function, self._left = error, function, at

    def __call__(self, *arguments, **options):
        self._left -= 1
        if self._left <= 0:
            raise self._error
        return self._function(*arguments, **options)


def other(name: str = "other", num_tokens: int = 6) -> Request:
    return Request(request_id=name, token_ids=prompt_of(30, seed=9), sampling=SamplingParams(max_tokens=num_tokens))


def assert_nothing_is_pinned(engine: Engine) -> None:
    engine.release_finished()
    engine.check()
    assert engine.memory().pinned == 0


def test_out_of_memory_at_an_admission_ends_that_request_alone(decoder, monkeypatch) -> None:
    engine = engine_of(decoder, 60)
    resident = keep(engine, AUTHOR, 10, 90)
    probe = Probe(positions=tuple(range(30, 40)), depth=3)
    engine.add(other())
    engine.step()
    monkeypatch.setattr(engine._runner.observer, "record", Raising(TOO_MUCH))
    reader = screened("reader", READER[:110], span_of(resident, 21), plan=FixedPlan({30: 3}, probe))
    answers = run(engine, reader)
    assert isinstance(answers["reader"].error, OutOfMemory)
    assert answers["other"].error is None
    assert_nothing_is_pinned(engine)


def test_out_of_memory_in_a_selectors_look_ends_that_request_alone(decoder) -> None:
    class Looks(FixedPlan):
        def plan(self, view, observation) -> RepairPlan:
            raise TOO_MUCH

    engine = engine_of(decoder, 60)
    resident = keep(engine, AUTHOR, 10, 90)
    for probe in (None, Probe(positions=tuple(range(30, 40)), depth=3)):
        answers = run(engine, other(), screened("reader", READER[:110], span_of(resident, 21), plan=Looks({}, probe)))
        assert isinstance(answers["reader"].error, OutOfMemory)
        assert answers["other"].error is None
        assert_nothing_is_pinned(engine)


def test_other_faults_at_an_admission_hold_nothing(decoder, monkeypatch) -> None:
    engine = engine_of(decoder, 60)
    monkeypatch.setattr(engine._scheduler._admission, "_queue_planned", Raising(RuntimeError("shapes differ")))
    engine.add(other())
    with pytest.raises(RuntimeError, match="shapes differ"):
        engine.step()
    assert_nothing_is_pinned(engine)


def test_a_restore_without_memory_brings_nothing_back_and_the_prompt_is_prefilled(decoder, monkeypatch) -> None:
    left = Host(decoder, blocks=14, host_blocks=20)
    first, second = left.keep_both()
    left.fill()
    pool = left.engine._runner.tensors
    monkeypatch.setattr(pool.transfers, "load", Raising(TOO_MUCH, pool.transfers.load, at=2), raising=False)
    answer = run(left.engine, screened("reader", READER, span_of(first, 21), span_of(second, 110)))["reader"]
    assert answer.error is None
    assert answer.sources is not None
    assert answer.sources.computed == len(READER)
    assert_nothing_is_pinned(left.engine)


def test_copies_that_fail_leave_no_pins(decoder, monkeypatch) -> None:
    left = Host(decoder, blocks=14, host_blocks=20)
    first, second = left.keep_both()
    exported = left.engine.export(second.handle)
    left.fill()
    left.engine.release_finished()
    pool, lost = left.engine._runner.tensors, RunnerLost("gone")
    with monkeypatch.context() as patched:
        patched.setattr(pool.transfers, "load", Raising(lost, pool.transfers.load, at=2), raising=False)
        with pytest.raises(RunnerLost):
            left.engine.restore([left.below[first.handle]])
    monkeypatch.setattr(pool, "write", Raising(lost, pool.write, at=2))
    with pytest.raises(RunnerLost):
        left.engine.load(exported)
    assert_nothing_is_pinned(left.engine)


def test_an_eviction_that_fails_leaves_no_resident_without_blocks(decoder) -> None:
    left = Host(decoder, blocks=14, host_blocks=20)
    first, _ = left.keep_both()
    left.engine._residents._on_evict = Raising(ValueError("the store is broken"))
    with pytest.raises(ValueError, match="the store is broken"):
        left.engine._pool.drop(first.handle)
    assert first.handle not in left.engine._residents
    assert_nothing_is_pinned(left.engine)


@pytest.mark.parametrize("error", [TOO_MUCH, RuntimeError("CUDA error: out of memory"), ValueError("else")], ids=repr)
def test_an_offload_that_fails_gives_its_host_blocks_back(decoder, monkeypatch, error: Exception) -> None:
    left = Host(decoder, blocks=14, host_blocks=20)
    first, _ = left.keep_both()
    pool = left.engine._runner.tensors
    monkeypatch.setattr(pool, "gather", Raising(error, pool.gather, at=2))
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="else"):
            left.engine.offload(first.handle)
    else:
        assert left.engine.offload(first.handle) is None
    left.engine.check_host([])


def test_what_a_step_brought_goes_out_with_what_it_lost(decoder, monkeypatch) -> None:
    engine = engine_of(decoder, 60)
    engine.add(other("short", num_tokens=1))
    pooled = Request(request_id="pooled", token_ids=prompt_of(30, seed=4), output=Output.POOLED_STATES, sampling=ONE)
    monkeypatch.setattr(PooledStates, "mean", Raising(TOO_MUCH))
    answers = run(engine, pooled)
    assert len(answers["short"].token_ids) == 1
    assert answers["short"].error is None
    assert isinstance(answers["pooled"].error, OutOfMemory)
    assert_nothing_is_pinned(engine)


def test_what_a_request_is_about_to_read_makes_no_room_for_what_comes_back(decoder) -> None:
    """Even where the policy would drop it first."""

    class MostRecentlyUsed(LeastRecentlyUsed):
        def candidates(self):
            return reversed(list(super().candidates()))

    stayed = Host(decoder, blocks=40, host_blocks=0)
    expected = run(stayed.engine, screened("reader", READER, *_spans(stayed.keep_both()), return_logits=True))["reader"]
    left = Host(decoder, blocks=14, host_blocks=20)
    first, second = left.keep_both()
    left.fill()
    left.engine.release_finished()
    assert left.engine.restore([left.below.pop(second.handle)])
    left.engine._pool.policy = _refilled(MostRecentlyUsed(), left.engine)
    answer = run(left.engine, screened("reader", READER, *_spans((first, second)), return_logits=True))["reader"]
    assert answer.sources is not None
    assert answer.sources.fallbacks == ()
    assert answer.sources.restored == 80
    assert torch.equal(answer.logits, expected.logits)


def test_what_is_left_of_a_budget_must_do_for_a_row() -> None:
    left = Spending(StepBudget(rows=10, prefill_row_layers=10), 4)
    left.spend(Rows.of(np.arange(2), np.array([4, 3])), decodes=False)
    assert left.is_spent


def test_steps_under_way_are_taken_in_when_another_finds_no_memory(decoder, monkeypatch) -> None:
    """A pipeline waits for the results of all steps that it was given."""
    engine = engine_of(decoder, 60, max_rows_per_step=16)
    asked = []
    submit = engine._runner.submit

    class Watched:
        def __init__(self, pending) -> None:
            self._pending = pending

        def arrives(self) -> bool:
            return True

        def result(self):
            asked.append(self)
            if len(asked) == 2:
                raise TOO_MUCH
            return self._pending.result()

    monkeypatch.setattr(type(engine._runner), "max_under_way", 2)
    submitted = []
    monkeypatch.setattr(
        engine._runner, "submit", lambda *given: submitted.append(Watched(submit(*given))) or submitted[-1]
    )
    engine.add(dataclasses.replace(other("long"), token_ids=prompt_of(100, seed=2)))
    engine.step()
    assert engine.has_work
    (output,) = engine.step()
    assert isinstance(output.error, OutOfMemory)
    assert asked == submitted
    assert not engine.has_work
    assert_nothing_is_pinned(engine)


def test_steps_that_nobody_wants_any_more_are_work(decoder, monkeypatch) -> None:
    engine = engine_of(decoder, 60, max_rows_per_step=16)
    monkeypatch.setattr(type(engine._runner), "max_under_way", 2)
    engine.add(dataclasses.replace(other("long"), token_ids=prompt_of(100, seed=2)))
    engine.step()
    engine.abort("long")
    assert engine.has_work
    assert engine.step() == []
    assert not engine.has_work


def _spans(residents):
    return span_of(residents[0], 21), span_of(residents[1], 110)


def _refilled(policy: LeastRecentlyUsed, engine: Engine) -> LeastRecentlyUsed:
    for keeper_id in engine._pool.policy.candidates():
        policy.add(keeper_id)
    return policy
