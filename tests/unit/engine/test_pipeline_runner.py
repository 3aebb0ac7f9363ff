"""The driver's side alone, over stages that live but never answer."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from agentkv_engine.cache.levels import Levels
from agentkv_engine.config import PipelineConfig
from agentkv_engine.errors import RunnerLost
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.pipeline import runner as runner_module
from agentkv_engine.pipeline.messages import ItemResult, ReadKV, Reply, StepResult
from agentkv_engine.pipeline.runner import PipelineRunner
from agentkv_engine.runner.runner import PoolPlan
from agentkv_engine.scheduler.output import SchedulerOutput


class SilentGroup:
    """Has what the runner needs of `Group`; writes down what is done to it."""

    made = 0
    events: tuple[str, ...] = ()
    faults: tuple[Exception, ...] = ()
    """What making the next ones raises."""

    def __init__(self, _num_stages: int, _make_spec: object) -> None:
        if SilentGroup.faults:
            fault, *rest = SilentGroup.faults
            SilentGroup.faults = tuple(rest)
            raise fault
        SilentGroup.made += 1
        self.pids = (SilentGroup.made,)
        self.answers: list[object] = []
        self.is_gone = False
        self._note("start")

    def _note(self, event: str) -> None:
        SilentGroup.events += (f"{event} {self.pids[0]}",)

    def wait_until_ready(self, _is_wanted: Callable[[], bool]) -> None:
        pass

    def order(self, stage: int, _message: object) -> int:
        if self.is_gone:
            raise RunnerLost(f"stage {stage} can't be reached")
        return 0

    def order_all(self, _message: object) -> int:
        return 0

    def receive(self, _timeout_ms: int, _unless: object = None) -> object:
        time.sleep(0.01)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait_for_beats(self, _timeout_ms: int) -> None:
        time.sleep(0.01)

    def fault(self, _silence: float) -> None:
        return None

    def kill(self) -> None:
        self._note("kill")

    def stop(self) -> None:
        self._note("stop")

    def close(self) -> None:
        self._note("close")


@pytest.fixture
def runner(small_model, monkeypatch) -> Iterator[PipelineRunner]:
    monkeypatch.setattr(SilentGroup, "made", 0)
    monkeypatch.setattr(SilentGroup, "events", ())
    monkeypatch.setattr(SilentGroup, "faults", ())
    monkeypatch.setattr(runner_module, "Group", SilentGroup)
    monkeypatch.setattr(runner_module, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(runner_module, "FIRST_PAUSE", 0.01)
    shape = ModelConfig.from_directory(small_model("qwen2"))
    made = PipelineRunner(
        PipelineConfig(num_stages=1, grace=0.05),
        (range(shape.num_layers),),
        lambda _stage, _shared: pytest.fail("no process is started"),
        shape=shape,
        dtype=torch.float32,
        plan=PoolPlan(levels=Levels(None, shape.num_layers), traced=None, num_blocks=1),
        block_bytes=1,
    )
    yield made
    made.close()


def read(number: int, layer: int) -> ReadKV:
    return ReadKV(number, layer, b"", False)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_question_that_is_never_answered_loses_the_stages(runner) -> None:
    """They are ended and closed before others start."""
    with pytest.raises(RunnerLost, match="has not answered"):
        runner.ask(0, read)
    wait_for(lambda: runner.is_ready)
    events = SilentGroup.events
    assert events[0] == "start 1"
    assert set(events[1:-2]) == {"kill 1"}
    assert events[-2:] == ("close 1", "start 2")
    with pytest.raises(RunnerLost, match="has not answered"):
        runner.wait_until_ready(0)
    assert runner.wait_until_ready(1)


def test_a_stage_that_can_not_be_reached_is_lost_at_once(runner) -> None:
    """Before the watcher sees it: no more is ordered of the same stages."""
    runner._group.is_gone = True
    with pytest.raises(RunnerLost, match=r"was lost \(stage 0 can't be reached\)"):
        runner.ask(0, read)
    with pytest.raises(RunnerLost, match="was lost"):
        runner.ask(0, read)
    assert "kill 1" in SilentGroup.events


def test_whatever_fails_when_stages_start_is_tried_again(runner, caplog) -> None:
    SilentGroup.faults = (OSError("no file is left"), ValueError("odd"))
    with pytest.raises(RunnerLost):
        runner.ask(0, read)
    wait_for(lambda: runner.is_ready)
    assert "can't be started: OSError: no file is left" in caplog.text
    assert "can't be started: ValueError: odd" in caplog.text


def test_a_step_is_done_when_the_stages_say_so(runner) -> None:
    """Not when its result is fetched: nobody may want it any more."""
    step = runner.submit(SchedulerOutput(scheduled=()), lambda _slots: None)
    assert runner._step_watch.is_busy
    runner._group.answers.append(StepResult(step.number, [], done=time.monotonic()))
    while not runner.arrives(step):
        pass
    assert not runner._step_watch.is_busy
    time.sleep(0.1)
    assert step.result() == []
    assert max(seconds for _, seconds in runner._step_watch._seen) < 0.1


@pytest.mark.parametrize(
    "answer",
    [
        lambda number: StepResult(number, [ItemResult(None, [], b"", b"")], done=time.monotonic()),
        lambda number: Reply(number, []),
        lambda _number: RunnerLost("a stage sent 3 bytes that are no answer"),
    ],
)
def test_an_answer_that_makes_no_sense_loses_the_stages(runner, answer) -> None:
    """More results than rows, another kind of answer, none at all."""
    step = runner.submit(SchedulerOutput(scheduled=()), lambda _slots: None)
    runner._group.answers.append(answer(step.number))
    with pytest.raises(RunnerLost, match=r"makes no sense|are no answer"):
        step.result()
    with pytest.raises(RunnerLost):
        runner.wait_until_ready(1)
    wait_for(lambda: runner.is_ready)
    assert runner.wait_until_ready(1)


def test_a_tensor_of_another_size_loses_the_stages(runner) -> None:
    runner._group.answers.append(Reply(1, [b"1234", b"1234"]))
    with pytest.raises(RunnerLost, match="makes no sense"):
        runner.tensors.read(0, torch.arange(3))
