"""A group's processes end with it, whatever state they are in."""

import os
import subprocess

import pytest
import zmq

from agentkv_engine.errors import RunnerLost
from agentkv_engine.pipeline import group as group_module
from agentkv_engine.pipeline.group import Group
from agentkv_engine.pipeline.keys import GroupKeys


class Sleepers:
    """Starts processes that never reach the driver."""

    def __init__(self, most: int = 2) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self._most = most

    def spawn(self, _spec: object) -> subprocess.Popen[bytes]:
        if len(self.started) == self._most:
            raise OSError("too many processes")
        self.started.append(subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE))
        return self.started[-1]


def test_stages_that_can_not_be_told_to_end_are_ended(monkeypatch) -> None:
    sleepers = Sleepers()
    monkeypatch.setattr(group_module, "_spawn", sleepers.spawn)
    monkeypatch.setattr(group_module, "END_SECONDS", 0.05)
    before = len(os.listdir("/proc/self/fd"))
    group = Group(2, lambda _stage, _shared: None)
    group.stop()
    assert [process.returncode for process in sleepers.started] == [-9, -9]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_group_that_can_not_be_made_leaves_no_process(monkeypatch) -> None:
    sleepers = Sleepers(most=1)
    monkeypatch.setattr(group_module, "_spawn", sleepers.spawn)
    with pytest.raises(OSError, match="too many"):
        Group(2, lambda _stage, _shared: None)
    assert sleepers.started[0].returncode == -9


def test_closing_while_stages_start_is_not_a_timeout(monkeypatch) -> None:
    monkeypatch.setattr(group_module, "_spawn", Sleepers().spawn)
    group = Group(2, lambda _stage, _shared: None)
    with pytest.raises(RunnerLost, match="closed while its stages started"):
        group.wait_until_ready(lambda: False)
    group.kill()
    group.close()


def test_a_stage_that_lost_its_neighbour_is_not_to_blame(monkeypatch) -> None:
    sleepers = Sleepers()
    monkeypatch.setattr(group_module, "_spawn", sleepers.spawn)
    monkeypatch.setattr(group_module, "SEEN_SECONDS", 0.2)
    group = Group(2, lambda _stage, _shared: None)
    assert group.killed_beside(0) is None
    sleepers.started[1].kill()
    assert group.killed_beside(0) == "stage 1 was ended by signal 9"
    assert group.killed_beside(1) is None
    group.stop()


def test_what_is_no_answer_is_a_loss(monkeypatch) -> None:
    monkeypatch.setattr(group_module, "_spawn", Sleepers().spawn)
    told: dict[str, object] = {}
    group = Group(1, lambda _stage, shared: told.update(shared))
    context = zmq.Context()
    try:
        stage = context.socket(zmq.PUSH)
        GroupKeys.of(told["secret"]).as_stage(stage)
        stage.connect(told["answers"])
        stage.send(b"junk")
        with pytest.raises(RunnerLost, match="4 bytes that are no answer"):
            group.receive(5000)
    finally:
        context.destroy(linger=0)
        group.kill()
        group.close()
