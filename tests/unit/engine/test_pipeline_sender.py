"""A stage's answers leave in order, whatever making one of them takes or raises."""

import threading
from collections.abc import Iterator

import pytest
import zmq

from agentkv_engine.pipeline.messages import Failed, Ready, Reply, decode_answer
from agentkv_engine.pipeline.sender import Sender


@pytest.fixture
def sockets() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context = zmq.Context()
    driver, stage = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    driver.bind("inproc://answers")
    stage.connect("inproc://answers")
    yield driver, stage
    context.destroy(linger=0)


def test_answers_wait_for_those_before_and_nobody_waits_for_them(sockets) -> None:
    driver, stage = sockets
    is_there = threading.Event()

    def later() -> Reply:
        assert is_there.wait(10)
        return Reply(1, [])

    sender = Sender(stage, "cpu", lambda error: pytest.fail(str(error)))
    sender.send(later)
    sender.send(Ready(0))
    assert not driver.poll(50)
    is_there.set()
    sender.close()
    assert [decode_answer(driver.recv()) for _ in range(2)] == [Reply(1, []), Ready(0)]


def test_an_answer_that_can_not_be_made_is_told(sockets) -> None:
    """To the thread that computes, which ends and says why."""
    driver, stage = sockets
    told: list[Exception] = []
    sender = Sender(stage, "cpu", told.append)

    def broken() -> Reply:
        raise RuntimeError("the device failed")

    sender.send(broken)
    sender.send(Failed(0, "the device failed"))
    sender.close()
    assert decode_answer(driver.recv()) == Failed(0, "the device failed")
    assert [str(error) for error in told] == ["the device failed"]
