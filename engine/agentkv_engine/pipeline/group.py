"""The processes of one group of stages, and the sockets by which the driver reaches them."""

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket
from typing import Any

import msgspec
import zmq

from agentkv_engine.errors import RunnerLost
from agentkv_engine.pipeline.keys import GroupKeys
from agentkv_engine.pipeline.messages import Failed, Message, Ready, Stop, decode_answer, encode
from agentkv_engine.pipeline.spec import StageSpec

_logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
START_SECONDS = 600
"""How long loading may take."""
END_SECONDS = 5
"""How long stages may take to end when they are told to."""
KILL_SECONDS = 10
"""How long a killed process may take to be gone: a driver may hold it."""
SEEN_SECONDS = 0.5
"""How long the end of a process may take to be seen, after its neighbours have noticed."""

MakeSpec = Callable[[int, dict[str, Any]], StageSpec]
"""The spec of a stage, from its number and what this group adds: endpoints, secret, meeting."""


class Group:
    """Stages that were started together; when one is lost, all are.

    `order` and `receive` are called by one thread, `fault` and `wait_for_beats` by another.

    Args:
        num_stages: how many.
        make_spec: what each is told.
    """

    def __init__(self, num_stages: int, make_spec: MakeSpec) -> None:
        self._num_stages = num_stages
        self._context: zmq.Context[Any] = zmq.Context()
        secret = secrets.token_bytes(32)
        keys = GroupKeys.of(secret)
        self._orders = self._bind(zmq.ROUTER, keys)
        self._orders.router_mandatory = True
        self._answers = self._bind(zmq.PULL, keys)
        self._beats = self._bind(zmq.PULL, keys)
        self._directory = tempfile.TemporaryDirectory(prefix="agentkv-stages-", ignore_cleanup_errors=True)
        shared = {
            "orders": _endpoint(self._orders),
            "answers": _endpoint(self._answers),
            "beats": _endpoint(self._beats),
            "secret": secret,
            "meeting": str(Path(self._directory.name) / "meeting"),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for stage in range(num_stages):
                self._processes.append(_spawn(make_spec(stage, shared)))
        except BaseException:
            self.kill()
            self.close()
            raise
        self._last_beat = dict.fromkeys(range(num_stages), time.monotonic())

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids, by stage."""
        return tuple(process.pid for process in self._processes)

    def wait_until_ready(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Wait until all stages have loaded their layers and can be ordered.

        Raises:
            RunnerLost: one of them failed, or took too long, or the group is not wanted any more.
        """
        missing, heard = set(range(self._num_stages)), set()
        deadline = time.monotonic() + START_SECONDS
        while missing or len(heard) < self._num_stages:
            match self.receive(100):
                case Ready(stage):
                    missing.discard(stage)
                case Failed(stage, reason):
                    raise RunnerLost(f"stage {stage} could not start: {reason}")
            while self._orders.poll(0):
                heard.add(self._orders.recv_multipart()[0])
            if (reason := self._ended()) is not None:
                raise RunnerLost(f"{reason} while it started: see its messages above")
            if not is_wanted():
                raise RunnerLost("the engine was closed while its stages started")
            if time.monotonic() > deadline:
                raise RunnerLost(f"stages {sorted(missing)} were not ready within {START_SECONDS} s")
        self._last_beat = dict.fromkeys(range(self._num_stages), time.monotonic())

    def order(self, stage: int, message: Message) -> int:
        """Send one stage a message; its size in bytes."""
        data = encode(message)
        self._send(stage, data)
        return len(data)

    def order_all(self, message: Message) -> int:
        """Send all stages the same message, the first one first; its size in bytes."""
        data = encode(message)
        for stage in range(self._num_stages):
            self._send(stage, data)
        return len(data)

    def receive(self, timeout_ms: int, unless: socket | None = None) -> Any:
        """The next answer of a stage; None where none comes in time, or before `unless` can be read.

        Raises:
            RunnerLost: what came is no answer.
        """
        poller = zmq.Poller()
        poller.register(self._answers, zmq.POLLIN)
        if unless is not None:
            poller.register(unless, zmq.POLLIN)
        if self._answers not in dict(poller.poll(timeout_ms)):
            return None
        data = self._answers.recv()
        try:
            return decode_answer(data)
        except msgspec.MsgspecError as error:
            raise RunnerLost(f"a stage sent {len(data)} bytes that are no answer: {error}") from None

    def wait_for_beats(self, timeout_ms: int) -> None:
        """Take in signs of life; returns after so long, or when one came."""
        if self._beats.poll(timeout_ms):
            while self._beats.poll(0):
                self._last_beat[int(self._beats.recv())] = time.monotonic()

    def fault(self, silence: float) -> str | None:
        """What is wrong: a process has ended, or gave no sign of life for so many seconds."""
        if (reason := self._ended()) is not None:
            return reason
        for stage, last in self._last_beat.items():
            if (quiet := time.monotonic() - last) > silence:
                return f"stage {stage} gave no sign of life for {quiet:.1f} s"
        return None

    def killed_beside(self, stage: int) -> str | None:
        """Which other stage was ended by a signal; waits a moment for it to be seen. (One that ended by itself may have
        lost its neighbour.)"""
        deadline = time.monotonic() + SEEN_SECONDS
        others = [number for number in range(self._num_stages) if number != stage]
        while True:
            for number in others:
                if (self._processes[number].poll() or 0) < 0:
                    return self._end_of(number)
            if time.monotonic() > deadline:
                return None
            time.sleep(SEEN_SECONDS / 20)

    def kill(self) -> None:
        """End all processes at once; the sockets stay, for whoever is using them."""
        for process in self._processes:
            process.kill()
        for stage, process in enumerate(self._processes):
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                _logger.warning(
                    "stage %d (process %d) is still there %d s after its end", stage, process.pid, KILL_SECONDS
                )
            _close_stdin(process)

    def stop(self) -> None:
        """Let all processes end, and end those that do not."""
        try:
            for stage in range(self._num_stages):
                with contextlib.suppress(RunnerLost):  # a stage that is gone needs no telling
                    self.order(stage, Stop())
            deadline = time.monotonic() + END_SECONDS
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            self.kill()
            self.close()

    def close(self) -> None:
        """Close the sockets; the processes have ended."""
        self._context.destroy(linger=0)
        self._directory.cleanup()

    def _send(self, stage: int, data: bytes) -> None:
        try:
            self._orders.send_multipart([str(stage).encode(), data])
        except zmq.ZMQError as error:
            raise RunnerLost(f"stage {stage} can't be reached: {error}") from None

    def _ended(self) -> str | None:
        ends = (self._end_of(stage) for stage in range(len(self._processes)))
        return next((end for end in ends if end is not None), None)

    def _end_of(self, stage: int) -> str | None:
        if (status := self._processes[stage].poll()) is None:
            return None
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"stage {stage} {how}"

    def _bind(self, kind: int, keys: GroupKeys) -> zmq.Socket[bytes]:
        bound: zmq.Socket[bytes] = self._context.socket(kind)
        keys.as_driver(bound)
        bound.bind(f"tcp://{LOOPBACK}:*")
        return bound


def _endpoint(bound: zmq.Socket[bytes]) -> str:
    return str(bound.getsockopt_string(zmq.LAST_ENDPOINT))


def _spawn(spec: StageSpec) -> subprocess.Popen[bytes]:
    """Start a stage; its spec, which holds the secret, goes through its stdin, whose end tells it that we are gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentkv_engine.pipeline.worker"],
        stdin=subprocess.PIPE,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"},
        start_new_session=True,  # Ctrl-C is for us: we then stop it
    )
    assert process.stdin is not None
    data = msgspec.msgpack.encode(spec)
    with contextlib.suppress(BrokenPipeError):  # it ended at once: that will be seen
        process.stdin.write(len(data).to_bytes(8, "little") + data)
        process.stdin.flush()
    return process


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def ordered(specs: Sequence[StageSpec]) -> MakeSpec:
    """Specs that lack what a group adds, completed."""
    return lambda stage, shared: msgspec.structs.replace(specs[stage], **shared)
