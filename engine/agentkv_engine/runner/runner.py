"""The seam between deciding what to compute and computing it: here, or in other processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from agentkv_engine.cache.kv_layers import KVLayers
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.row_traces import TracedShape
from agentkv_engine.config import EngineConfig
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.runner.observer import Observing
from agentkv_engine.scheduler.output import SchedulerOutput, SeqResult


class Pending(Protocol):
    """A step that was submitted."""

    def arrives(self) -> bool:
        """Wait for the results, or until `Runner.interrupt`; whether they are here.

        Raises:
            RunnerLost: the step was lost.
        """
        ...

    def result(self) -> list[SeqResult]:
        """One result a scheduled sequence; waits for them. Steps are asked for theirs in the order of submission.

        Raises:
            RunnerLost: the step was lost.
        """
        ...


class Runner(Protocol):
    """Runs a model's steps, in order, over KV that it holds.

    Attributes:
        max_under_way: steps that may be submitted before the result of the first is asked for.
        prepares: whether `prepare` is worth its time.
        tensors: the KV.
        observer: looks at it.
    """

    @property
    def max_under_way(self) -> int: ...

    @property
    def prepares(self) -> bool: ...

    @property
    def tensors(self) -> KVLayers: ...

    @property
    def observer(self) -> Observing: ...

    @property
    def is_ready(self) -> bool:
        """Whether steps can be submitted; may be asked by any thread."""
        ...

    def submit(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> Pending:
        """Start a step of at least one row.

        Args:
            schedule: what to run.
            assert_writable: integrity check of the slots that its rows write.

        Raises:
            RunnerLost: it can't be started.
        """
        ...

    def prepare(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> bool:
        """Get ready for a step of decodes whose tokens are not known yet, while another runs; False where it can't.
        Another step may come instead."""
        ...

    def wait_until_ready(self, timeout: float) -> bool:
        """Whether steps can be submitted; waits so many seconds for it.

        Raises:
            RunnerLost: all KV and all that was under way are gone; told once.
        """
        ...

    def interrupt(self) -> None:
        """End a wait of `Pending.arrives`, now or the next; may be called by any thread."""
        ...

    def close(self) -> None:
        """End what it runs elsewhere. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What a runner's pool is to hold.

    Attributes:
        levels: depths of rows.
        traced: what rows leave beside their keys.
        num_blocks: blocks, of all layers.
    """

    levels: Levels
    traced: TracedShape | None
    num_blocks: int


class RemoteModel(Protocol):
    """A model whose layers lie in other processes."""

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, keys and values."""
        ...

    def start(self, config: EngineConfig, plan: PoolPlan) -> Runner:
        """Start the processes and load the layers. Raises what loading raises."""
        ...
