"""Stages on GPUs of their own, over NCCL, give what one GPU gives; one that is killed comes back."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from agentkv_engine.engine import Engine
from agentkv_engine.errors import RunnerLost
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from engine_driver import engine_of, keep, prompt_of, run, screened, span_of
from pipeline_asks import AUTHOR, READER, SELECTORS, ask, assert_alike, requests
from pipelines import LEVELS, SharedStages

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
WITHIN = 1e-3


@pytest.fixture(scope="module")
def stages(small_model) -> Iterator[SharedStages]:
    shared = SharedStages(small_model("qwen2"), device="cuda")
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def decoder(small_model):
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cuda")


def both(stages: SharedStages, decoder, **options) -> tuple[Engine, Engine]:
    """An engine over stages, and one on one GPU in this process."""
    return stages.engine(**options), engine_of(
        decoder, 100, levels=LEVELS, device="cuda", dtype=torch.float32, **options
    )


def test_everything_that_can_be_asked_comes_out_the_same(stages, decoder) -> None:
    staged, here = both(stages, decoder, max_rows_per_step=24)
    assert_alike(run(staged, *requests()), run(here, *requests()), within=WITHIN)


def test_many_that_decode_together_come_out_the_same(stages, decoder) -> None:
    """Steps of the same sizes come again: they are replayed as graphs."""

    def many() -> list[Request]:
        lots = [SamplingParams(max_tokens=40, temperature=0.8 * (n % 2), seed=n) for n in range(12)]
        return [ask(f"{n}", 20 + n, n, sampling=lot) for n, lot in enumerate(lots)]

    staged, here = both(stages, decoder)
    assert_alike(run(staged, *many()), run(here, *many()), within=WITHIN)


@pytest.mark.parametrize("rule", SELECTORS)
def test_screened_requests_make_the_same_plans(stages, decoder, rule) -> None:
    answers = []
    for engine in both(stages, decoder, max_rows_per_step=24):
        resident = keep(engine, AUTHOR, 0, 48, mode=ReuseMode.OFF)
        reader = screened(
            "reader", READER, span_of(resident, 10), plan=SELECTORS[rule](), sampling=SamplingParams(max_tokens=8)
        )
        answers.append(run(engine, reader, ask("beside", 30, 11)))
        engine.release_finished()
        assert engine.memory().pinned == 0
    assert_alike(*answers, within=WITHIN)
    staged, here = (got["reader"].sources for got in answers)
    assert staged == here


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_stage_fails_what_runs_and_comes_back(stages, sign) -> None:
    engine = stages.engine()
    ten = SamplingParams(max_tokens=10)
    before = run(engine, ask("before", 20, 1, sampling=ten))["before"]
    engine.add(ask("running", 20, 2, sampling=SamplingParams(max_tokens=1000)))
    for _ in range(10):
        engine.step()
    old = stages.runner.pids
    os.kill(old[1], sign)
    struck, failed = time.monotonic(), None
    while failed is None:
        failed = next((output.error for output in engine.step() if output.error is not None), None)
        assert time.monotonic() - struck < 30
    noticed = time.monotonic() - struck
    assert isinstance(failed, RunnerLost)
    assert "stage 1" in str(failed)
    assert noticed < 10
    while not engine.is_ready:
        assert time.monotonic() - struck < 90, "the stages did not come back"
        time.sleep(0.1)
    print(f"{sign.name}: noticed after {noticed:.2f} s, back after {time.monotonic() - struck:.1f} s")
    assert run(engine, ask("after", 20, 1, sampling=ten))["after"].token_ids == before.token_ids
    assert stages.runner.pids != old


def test_bfloat16_differs_no_more_than_rounding(small_model) -> None:
    """The same forced tokens, alone: what a stage passes on is rounded where one process rounds it too."""
    shared = SharedStages(small_model("qwen2"), device="cuda", dtype=torch.bfloat16)
    decoder = load_decoder(small_model("qwen2"), dtype=torch.bfloat16, device="cuda")
    try:
        logits = []
        for engine in (
            shared.engine(40),
            engine_of(decoder, 40, levels=LEVELS, device="cuda", dtype=torch.bfloat16),
        ):
            forced = ask("forced", 30, 4, forced_output=prompt_of(40, seed=5), return_logits=True)
            logits.append(run(engine, forced)["forced"].logits.cpu())
        assert (logits[0] - logits[1]).abs().max() < 0.02 * logits[1].abs().max()
    finally:
        shared.close()
