"""A stage that dies or hangs: it is noticed, running requests are told, and the pipeline serves again."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentkv_engine.engine import Engine
from agentkv_engine.errors import RunnerLost
from agentkv_engine.request import Request, SamplingParams
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView
from engine_driver import keep, prompt_of, run, screened, span_of, steps
from pipelines import SharedStages

LONG = SamplingParams(max_tokens=2000)


@pytest.fixture(scope="module")
def stages(small_model) -> Iterator[SharedStages]:
    shared = SharedStages(small_model("qwen2"))
    yield shared
    shared.close()


def ask(name: str, sampling: SamplingParams, seed: int = 1) -> Request:
    return Request(request_id=name, token_ids=prompt_of(20, seed=seed), sampling=sampling)


def wait_until_ready(engine: Engine, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not engine.is_ready:
        assert time.monotonic() < deadline, "the stages did not come back"
        time.sleep(0.05)


@pytest.mark.parametrize(("sign", "within"), [(signal.SIGKILL, 1.5), (signal.SIGSTOP, 5.0)])
def test_a_lost_stage_fails_what_runs_and_comes_back(stages, sign, within) -> None:
    evicted: list[int] = []
    engine = Engine(stages, stages.engine_config(100, max_sequences=2), on_evict=evicted.append)
    ten = SamplingParams(max_tokens=10)
    before = run(engine, ask("before", ten))["before"]
    resident = engine.keep("before", 0, 16)
    for number in range(2):
        engine.add(ask(f"running{number}", LONG, seed=number))
    engine.add(ask("waiting", ten))
    for _ in range(10):
        engine.step()
    old = stages.runner.pids
    os.kill(old[1], sign)
    struck, failed = time.monotonic(), {}
    while len(failed) < 2:
        failed |= {output.request_id: output.error for output in engine.step() if output.error is not None}
        assert time.monotonic() - struck < 30
    noticed = time.monotonic() - struck
    assert noticed < within + 2, "others use the machine too"
    assert failed.keys() == {"running0", "running1"}
    assert all(isinstance(error, RunnerLost) and "stage 1" in str(error) for error in failed.values())
    assert not engine.is_ready
    assert evicted == [resident.handle]
    assert engine.memory().kept == 0
    assert engine.step() == []  # does not wait for long
    wait_until_ready(engine)
    assert not any(map(is_running, old))
    answers = run(engine, ask("after", ten))
    assert answers["after"].token_ids == answers["waiting"].token_ids == before.token_ids
    assert stages.runner.pids != old


def test_a_stage_that_dies_while_nothing_runs_is_replaced_and_leaves_nothing_open(stages) -> None:
    engine = stages.engine()
    before = open_files()
    os.kill(stages.runner.pids[1], signal.SIGKILL)
    wait_for(lambda: not engine.is_ready)
    wait_until_ready(engine)
    wait_for(lambda: open_files() <= before)
    assert len(run(engine, ask("a", SamplingParams(max_tokens=3)))["a"].token_ids) == 3


def test_sigterm_is_for_the_driver(stages) -> None:
    """A service's processes all get it; the driver needs its stages to finish what runs."""
    engine, pids = stages.engine(), stages.runner.pids
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    assert len(run(engine, ask("a", SamplingParams(max_tokens=3)))["a"].token_ids) == 3
    assert stages.runner.pids == pids


def test_a_stage_that_fails_says_why(stages) -> None:
    """A fault in a stage's own code, here an order for a sequence that it does not know."""
    engine = stages.engine()
    run(engine, ask("kept", SamplingParams(max_tokens=1)))
    engine.keep("kept", 0, 16)
    with pytest.raises(RunnerLost, match=r"stage 0 failed: KeyError"):
        stages.runner.ask(0, look_at_nothing)
    wait_until_ready(engine)
    assert engine.step() == []
    assert engine.memory().kept == 0, "what was kept before is gone"
    assert len(run(engine, ask("a", SamplingParams(max_tokens=3)))["a"].token_ids) == 3


def look_at_nothing(number: int, layer: int):
    from agentkv_engine.pipeline.messages import Look

    return Look(number, 10**6, "attention", layer, b"", [])


class LooksTooLate:
    """A selector during whose look a stage dies."""

    name = "too late"

    def __init__(self, stages: SharedStages) -> None:
        self._stages = stages

    def probe(self, view: ReuseView) -> Probe | None:
        return Probe(positions=(), depth=1)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        assert observation is not None
        os.kill(self._stages.runner.pids[0], signal.SIGKILL)
        observation.attention(0, range(0, 16))
        return RepairPlan()


@pytest.mark.parametrize("start", [0, 8])
def test_a_stage_that_dies_while_a_selector_looks_at_it(stages, start) -> None:
    """Before a row of the sequence has run it goes on waiting, and is prefilled; after that it fails."""
    engine = stages.engine()
    author = prompt_of(40, seed=3)
    resident = keep(engine, author, 0, 32, tenant="author")
    reader = prompt_of(start, seed=4) + author[:32] + prompt_of(5, seed=5)
    engine.add(screened("reader", reader, span_of(resident, start), plan=LooksTooLate(stages)))
    engine.add(ask("beside", SamplingParams(max_tokens=1), seed=6))
    answers = {}
    for _ in steps(engine, answers):
        pass
    if start:
        assert isinstance(answers["reader"].error, RunnerLost)
    else:
        assert answers["reader"].sources.fallbacks == (("segment_gone", 1),)
    assert answers["beside"].error is not None or len(answers["beside"].token_ids) == 1
    engine.release_finished()
    assert engine.memory().pinned == 0
    wait_until_ready(engine)


def test_idle_stages_use_little_of_a_core_and_closing_ends_them_though_one_is_dead(stages) -> None:
    pids = stages.runner.pids
    before, begun = sum(map(seconds_used, pids)), time.monotonic()
    time.sleep(2)
    used = sum(map(seconds_used, pids)) - before
    assert used / (time.monotonic() - begun) < 0.02 * len(pids)
    os.kill(pids[0], signal.SIGKILL)
    stages.close()
    assert not any(map(is_running, pids))


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def seconds_used(pid: int) -> float:
    """Processor time of a process so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
