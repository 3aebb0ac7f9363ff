"""Token throttling: the paper's formulas, their terms apart, and no sequence that starves."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkv_engine.config import BLOCK_SIZE, EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.scheduler.budget import FixedBudget, Load, StepBudget
from agentkv_engine.scheduler.token_throttling import TokenThrottling
from engine_driver import FixedPlan, block_bytes_of, engine_of, keep, prompt_of, screened, span_of, steps

PAPER = TokenThrottling(num_stages=4)
BUSY = Load(num_layers=32, num_decoding=10, prefill_row_layers=32 * 4000, num_blocks=1000, num_free=800)


def budget(policy: TokenThrottling, load: Load) -> StepBudget:
    return policy.budget(lambda: load)


def test_what_waits_is_spread_over_iterations() -> None:
    given = budget(PAPER, BUSY)
    assert given.prefill_row_layers == 32 * (4000 // 8)
    assert given.decode_rows == 3
    assert budget(PAPER, replace(BUSY, prefill_row_layers=32)).prefill_row_layers == 32 * 32
    assert budget(PAPER, replace(BUSY, prefill_row_layers=32 * 10**6)).prefill_row_layers == 32 * int(
        2048 * (0.8 - 0.05) / 0.95
    )


def test_shallow_repairs_count_as_little_as_they_cost() -> None:
    assert budget(PAPER, replace(BUSY, prefill_row_layers=4 * 4000)).prefill_row_layers == 32 * (500 // 8)


def test_a_full_pool_stops_prefill_while_something_decodes() -> None:
    full = replace(BUSY, num_free=50)
    assert budget(PAPER, full).prefill_row_layers == budget(PAPER, full).prefill_rows == 0
    nearly = replace(BUSY, num_free=52)
    assert budget(PAPER, nearly).prefill_rows == BLOCK_SIZE * 2
    alone = budget(PAPER, replace(full, num_decoding=0))
    assert alone.prefill_rows == 32
    assert alone.prefill_row_layers == 32 * 32


def test_each_term_can_be_left_out() -> None:
    scarce = replace(BUSY, num_free=100)
    both = budget(PAPER, scarce).prefill_row_layers
    no_waiting = budget(replace(PAPER, waiting_term=False), scarce).prefill_row_layers
    no_kv = budget(replace(PAPER, kv_term=False), scarce)
    assert both == no_waiting == 32 * int(2048 * 0.05 / 0.95)
    assert no_kv.prefill_row_layers == 32 * 500
    assert no_kv.prefill_rows == 2048
    assert budget(replace(PAPER, waiting_term=False), BUSY).prefill_row_layers == 32 * int(2048 * 0.75 / 0.95)
    neither = replace(PAPER, waiting_term=False, kv_term=False)
    assert budget(neither, scarce).prefill_row_layers == 32 * 2048


@pytest.mark.parametrize(
    "values", [{"num_stages": 0}, {"iterations": 0}, {"min_prefill": 0}, {"min_prefill": 4096}, {"min_free": 1.0}]
)
def test_numbers_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        TokenThrottling(**values)


loads = st.builds(
    lambda layers, decoding, waiting, blocks, free: Load(
        num_layers=layers,
        num_decoding=decoding,
        prefill_row_layers=waiting,
        num_blocks=blocks,
        num_free=min(free, blocks),
    ),
    *(st.integers(1, 64), st.integers(0, 300), st.integers(0, 10**7), st.integers(1, 10**5), st.integers(0, 10**5)),
)
policies = st.builds(
    TokenThrottling,
    num_stages=st.integers(1, 16),
    iterations=st.integers(1, 32),
    min_prefill=st.integers(1, 64),
    min_free=st.floats(0, 0.99),
    waiting_term=st.booleans(),
    kv_term=st.booleans(),
)


@given(load=loads, policy=policies)
@settings(max_examples=200, deadline=None)
def test_there_is_room_for_a_row_and_never_for_more_than_allowed(load: Load, policy: TokenThrottling) -> None:
    given = budget(policy, load)
    assert given.decode_rows is not None
    assert given.prefill_rows is not None
    assert given.prefill_row_layers is not None
    assert 0 <= given.prefill_row_layers <= policy.max_prefill * load.num_layers
    assert given.decode_rows * policy.num_stages >= load.num_decoding
    assert (given.decode_rows - 1) * policy.num_stages < load.num_decoding or load.num_decoding == 0
    assert given.rows >= given.decode_rows
    if load.num_decoding == 0:
        assert min(given.prefill_rows, given.prefill_row_layers) >= 1
    elif policy.kv_term:
        assert given.prefill_rows <= BLOCK_SIZE * load.num_free


@given(
    policy=policies,
    num_blocks=st.sampled_from([14, 30, 100]),
    lengths=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 30)), min_size=1, max_size=6),
)
@settings(max_examples=15, deadline=None)
def test_everyone_ends_and_no_step_exceeds_its_budget(small_decoder, policy, num_blocks, lengths) -> None:
    engine = Engine(
        small_decoder,
        EngineConfig(kv_memory=num_blocks * block_bytes_of(small_decoder), trace_layers=(0, 1, 2), max_sequences=4),
        budget=(spy := Spy(policy)),
    )
    for number, (length, reply) in enumerate(lengths):
        prompt = prompt_of(length, seed=number)
        engine.add(Request(request_id=str(number), token_ids=prompt, sampling=SamplingParams(max_tokens=reply)))
    spy.watch(engine)
    answers = {}
    for _ in steps(engine, answers):
        pass
    assert {name: len(answer.token_ids) for name, answer in answers.items()} == {
        str(number): reply for number, (_, reply) in enumerate(lengths)
    }


class Spy:
    """Remembers the budget that was given last, and holds the next step to it."""

    def __init__(self, policy: TokenThrottling) -> None:
        self.policy = policy

    def budget(self, load) -> StepBudget:
        self.given = self.policy.budget(load)
        return self.given

    def watch(self, engine: Engine) -> None:
        run = engine._runner.submit

        def submit(schedule, assert_writable):
            rows = {True: 0, False: 0}
            for item in schedule.scheduled:
                rows[item.sequence.num_emitted > 0 and len(item.rows) == 1] += len(item.rows)
            assert rows[True] <= max(self.given.decode_rows, 1)
            assert rows[False] <= max(self.given.prefill_rows, 1)
            assert rows[False] * 3 <= max(self.given.prefill_row_layers, 3)
            return run(schedule, assert_writable)

        engine._runner.submit = submit


def test_the_budget_changes_when_rows_run_and_never_what_comes_out(decoder) -> None:
    answers = []
    for policy in (FixedBudget(1024), TokenThrottling(num_stages=2, min_prefill=5), TokenThrottling(max_prefill=32)):
        engine = engine_of(decoder, 60)
        resident = keep(engine, prompt_of(60, seed=1), 0, 48, mode=ReuseMode.OFF)
        engine._scheduler._budget = policy
        reader = prompt_of(10, seed=2) + prompt_of(60, seed=1)[:48] + prompt_of(20, seed=3)
        plan = FixedPlan(dict.fromkeys(range(10, 30), 3))
        twenty = SamplingParams(max_tokens=20)
        engine.add(Request(request_id="a", token_ids=prompt_of(80, seed=4), sampling=twenty))
        engine.add(screened("b", reader, span_of(resident, 10), plan=plan, sampling=twenty))
        got = {}
        for _ in steps(engine, got):
            pass
        answers.append({name: answer.token_ids for name, answer in got.items()})
    assert answers[0] == answers[1] == answers[2]


def test_the_setting_throttles_up_to_the_rows_of_a_step(decoder) -> None:
    engine = engine_of(decoder, 30, budget="throttling", max_rows_per_step=24)
    assert engine._scheduler._budget == TokenThrottling(max_prefill=24, min_prefill=24)


@pytest.fixture(scope="module")
def small_decoder(small_model):
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")
