"""The driver's side of a pipeline: orders steps, gathers what they bring, and starts lost stages again."""

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agentkv_engine.config import PipelineConfig
from agentkv_engine.errors import ConstraintFailed, RunnerLost
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.pipeline.group import Group, MakeSpec
from agentkv_engine.pipeline.messages import Failed, ItemResult, Message, Reply, StepOrder, StepResult, StepTimes, Tell
from agentkv_engine.pipeline.packing import unpack_tensor
from agentkv_engine.pipeline.remote_kv import RemoteKV
from agentkv_engine.pipeline.remote_observer import RemoteObserver
from agentkv_engine.pipeline.step_watch import StepWatch
from agentkv_engine.pipeline.told import Told
from agentkv_engine.runner.runner import PoolPlan
from agentkv_engine.sampling.sampler import Sample, constraint_failure
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput, SeqResult
from agentkv_engine.scheduler.sequence import Residence

_logger = logging.getLogger(__name__)
POLL_MS = 100
"""How often a wait for stages looks whether they were lost meanwhile."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between tries to start the stages where that keeps failing."""

ASK_SECONDS = 60.0
"""A stage may take so long, and the grace, for a look or for reading KV while no step is under way: kernels may be
compiled."""

TIMES_KEPT = 1 << 17

SETTLE_SECONDS = 2.0
"""How long `settled_times` waits."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that was ordered; implements `Pending`."""

    runner: "PipelineRunner"
    number: int
    schedule: SchedulerOutput
    failed: dict[int, ConstraintFailed]

    def arrives(self) -> bool:
        """See `Pending.arrives`."""
        return self.runner.arrives(self)

    def result(self) -> list[SeqResult]:
        """See `Pending.result`."""
        return self.runner.finish(self)


class PipelineRunner:
    """Implements `Runner` over a group of stages. One thread of its own watches over them.

    Args:
        config: how they are made and when they count as lost.
        layers: of each stage.
        make_spec: what each stage is told.
        shape, dtype, plan: of the model and its pool.
        block_bytes: of a block, all layers.

    Attributes:
        times: what the stages told of their last steps, where they are to (`PipelineConfig.tell_times`).
        bytes_ordered: size of the last step's order.

    Raises:
        RunnerLost: the stages could not be started.
    """

    def __init__(
        self,
        config: PipelineConfig,
        layers: tuple[range, ...],
        make_spec: MakeSpec,
        *,
        shape: ModelConfig,
        dtype: torch.dtype,
        plan: PoolPlan,
        block_bytes: int,
    ) -> None:
        self.max_under_way = config.most_under_way
        self.prepares = False
        self.times: deque[StepTimes] = deque(maxlen=TIMES_KEPT)
        self.bytes_ordered = 0
        self._config = config
        self._layers = layers
        self._make_spec = make_spec
        self._shape = shape
        self._no_logits = torch.empty(0, shape.vocab_size)
        traced = plan.traced
        self.tensors = RemoteKV(self, shape, dtype, traced, block_bytes)
        self.observer = RemoteObserver(self, shape, traced.layers if traced is not None else (), self._tell)
        self._numbers = self._last_step = 0
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._changed = threading.Condition()
        self._sockets = threading.Lock()
        self._closing = False
        self._untold: RunnerLost | None = None
        self._dead: list[Group] = []
        self._group: Group | None = None
        self._forget()
        self._group = self._start()
        self._watcher = threading.Thread(target=self._watch, name="agentkv-stages", daemon=True)
        self._watcher.start()

    @property
    def is_ready(self) -> bool:
        """Whether steps can be ordered; may be asked by any thread."""
        return self._group is not None

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the stages; empty while they are started again."""
        group = self._group
        return group.pids if group is not None else ()

    def settled_times(self) -> list[StepTimes]:
        """`times`, once every stage has told of the last step: nothing may be under way."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            if sum(each.number == self._last_step for each in self.times) == len(self._layers):
                break
            self._receive()
        return list(self.times)

    def submit(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> _UnderWay:
        """See `Runner.submit`: the order is on its way to all stages."""
        if schedule.scheduled:
            written = [item.residence.own_P[item.rows.positions] for item in schedule.scheduled]
            assert_writable(np.concatenate(written))
        told = self._told.step(schedule.scheduled)
        number = self._last_step = self._next_number()
        self.bytes_ordered = self._order(None, StepOrder(number, told.updates, told.items, told.decodes))
        self._step_watch.begin(number, schedule.num_rows, time.monotonic())
        return _UnderWay(self, number, schedule, told.failed)

    def arrives(self, step: _UnderWay) -> bool:
        """Wait for a step's result, or until `interrupt`. Raises RunnerLost."""
        while step.number not in self._arrived:
            self._receive(self._woken)
            if _drained(self._woken):
                return step.number in self._arrived
        return True

    def interrupt(self) -> None:
        """See `Runner.interrupt`."""
        with contextlib.suppress(OSError):  # it is full of them, or closed
            self._wake.send(b".")

    def finish(self, step: _UnderWay) -> list[SeqResult]:
        """What a step brought; waits for it. Raises RunnerLost."""
        answer = self._wait_for(step.number)
        with self.taking():
            pairs = enumerate(zip(step.schedule.scheduled, answer.items, strict=True))
            return [self._result(item, told, step.failed.get(place)) for place, (item, told) in pairs]

    def prepare(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> bool:  # noqa: ARG002
        """See `Runner.prepare`: orders run ahead anyway."""
        return False

    def wait_until_ready(self, timeout: float) -> bool:
        """See `Runner.wait_until_ready`."""
        with self._changed:
            if self._untold is not None:
                error, self._untold = self._untold, None
                self._forget()
                raise error
            if self._group is None:
                self._changed.wait(timeout)
            return self._group is not None and self._untold is None

    def ask(self, layer: int, make: Callable[[int, int], Message]) -> Reply:
        """See `Stages.ask`."""
        number, (stage, here) = self._next_number(), self._stage_of(layer)
        self._order(stage, make(number, here))
        return self._wait_for(number, self._config.grace + ASK_SECONDS)

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """See `Stages.taking`."""
        try:
            yield
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            _logger.exception("a stage's answer makes no sense")
            if (group := self._group) is not None:
                self._lose(group, f"a stage's answer makes no sense: {type(error).__name__}")
            raise self._untold or RunnerLost("the pipeline is started again: ask again soon") from error

    def tell(self, layer: int, make: Callable[[int], Message]) -> None:
        """See `Stages.tell`."""
        stage, here = self._stage_of(layer)
        self._order(stage, make(here))

    def close(self) -> None:
        """See `Runner.close`."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._watcher.join()
        group, self._group = self._group, None
        try:
            if group is not None:
                group.stop()
        finally:
            for dead in self._dead:
                dead.kill()
                dead.close()
            self._wake.close()
            self._woken.close()

    def _result(self, item: ScheduledSeq, told: ItemResult, failure: ConstraintFailed | None) -> SeqResult:
        seq, sampled = item.sequence, told.sampled
        is_alive = seq.residence is item.residence
        outcome: Sample | None = failure or sampled
        if sampled is not None and failure is None and seq.sampling.constraint is not None and is_alive:
            try:
                seq.sampling.take(sampled.token_id)
            except Exception as error:
                outcome = constraint_failure(error)
        if told.pooled and seq.states is not None and is_alive:
            seq.states.add_sum(unpack_tensor(told.pooled, torch.float32, -1), len(item.rows))
        logits = self._no_logits
        if told.logits:
            logits = unpack_tensor(told.logits, torch.float32, -1, self._shape.vocab_size)
        return SeqResult(logits=logits, sampled=outcome, scored=tuple(told.scored))

    def _tell(self, residence: Residence) -> int:
        number, updates = self._told.look(residence)
        if updates:
            self._order(None, Tell(updates))
        return number

    def _stage_of(self, layer: int) -> tuple[int, int]:
        """The stage of a layer, and its number there."""
        stage = next(number for number, layers in enumerate(self._layers) if layer in layers)
        return stage, layer - self._layers[stage].start

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _living(self) -> Group:
        """The stages, once the engine knows of all losses before (`wait_until_ready` tells it)."""
        group = self._group
        if group is None or self._untold is not None:
            raise self._untold or RunnerLost("the pipeline is started again: ask again soon")
        return group

    def _order(self, stage: int | None, message: Message) -> int:
        """Send one stage, or all, a message; its size in bytes. A stage that can't be reached is lost at once."""
        with self._sockets:
            group = self._living()
            try:
                return group.order_all(message) if stage is None else group.order(stage, message)
            except RunnerLost as error:
                self._lose(group, str(error))
                raise self._untold or error from None

    def _wait_for(self, number: int, patience: float | None = None) -> Any:
        """The answer of this number. Others that come first are noted.

        A step's time is watched; `patience` is how long anything else may take once no step is under way.
        """
        since = time.monotonic()
        while number not in self._arrived:
            group = self._living()
            self._receive()
            now = time.monotonic()
            if self._step_watch.is_busy:
                since = now
            elif patience is not None and now - since > patience and number not in self._arrived:
                self._lose(group, f"a stage has not answered for {now - since:.0f} s")
        return self._arrived.pop(number)

    def _receive(self, unless: socket.socket | None = None) -> None:
        """Take in the next answer, if one comes soon."""
        with self._sockets:
            group = self._living()
            try:
                answer = group.receive(POLL_MS, unless)
            except RunnerLost as error:
                self._lose(group, str(error))
                return
        match answer:
            case None:
                if (taken := self._step_watch.overdue(time.monotonic())) is not None:
                    self._lose(group, f"a step has taken {taken:.0f} s, far more than those before")
            case StepTimes():
                self.times.append(answer)
            case Failed(stage, reason):
                _logger.error("stage %d failed: %s", stage, reason)  # in whole here only: it may name files
                self._lose(group, f"stage {stage} failed: {reason.partition(':')[0]}", failed=stage)
            case StepResult():
                self._step_watch.end(answer.number, answer.done)
                self._arrived[answer.number] = answer
            case Reply():
                self._arrived[answer.number] = answer

    def _forget(self) -> None:
        """Nothing has been told to the stages, and nothing is awaited of them."""
        self._told = Told(self._shape.vocab_size, self._shape.num_layers)
        self._arrived: dict[int, Any] = {}
        self._step_watch = StepWatch(self._config.grace)

    def _lose(self, group: Group, reason: str, *, failed: int | None = None) -> None:
        """Give a group up, whichever thread has found out.

        Args:
            group: that is lost.
            reason: what was seen of it.
            failed: the stage that told of it: one that was killed beside it is the cause, though seen later.
        """
        with self._changed:
            if self._group is not group:
                return
            self._group = None
            if failed is not None:
                reason = group.killed_beside(failed) or reason
            self._untold = RunnerLost(f"the pipeline was lost ({reason}) and is started again: ask again")
            self._dead.append(group)
            self._changed.notify_all()
        _logger.error("the pipeline was lost: %s; its stages are started again", reason)
        group.kill()

    def _watch(self) -> None:
        """Look after the stages, until closed."""
        pause = FIRST_PAUSE
        while not self._closing:
            try:
                self._look_after()
                pause = FIRST_PAUSE
            except Exception as error:
                if self._closing:
                    return
                what = "started" if self._group is None else "watched"
                told = error if isinstance(error, RunnerLost) else f"{type(error).__name__}: {error}"
                _logger.error("the stages can't be %s: %s; again in %.0f s", what, told, pause)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _look_after(self) -> None:
        """Start the stages if they are lost; then listen to them for a while."""
        self._close_dead()
        group = self._group
        if group is None:
            group = self._start()
            with self._changed:
                self._group = group
                self._changed.notify_all()
            _logger.info("the pipeline's stages are ready again")
        group.wait_for_beats(POLL_MS)
        if (reason := group.fault(self._config.silence)) is not None:
            self._lose(group, reason)

    def _close_dead(self) -> None:
        """Close lost groups; the engine begins to use none of them, and has ended what it was at."""
        with self._changed:
            dead, self._dead = self._dead, []
        for group in dead:
            group.kill()  # and wait: what it holds is needed
            with self._sockets:
                group.close()

    def _start(self) -> Group:
        group = Group(len(self._layers), self._make_spec)
        try:
            group.wait_until_ready(lambda: not self._closing)
        except BaseException:
            group.kill()
            group.close()
            raise
        return group


def _drained(woken: socket.socket) -> bool:
    """Whether there was something to read."""
    with contextlib.suppress(BlockingIOError):
        return bool(woken.recv(4096))
    return False
