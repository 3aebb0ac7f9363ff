"""Budgets that follow the load, so that the micro-batches of a pipeline are alike."""

from collections.abc import Callable
from dataclasses import dataclass

from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.scheduler.budget import Load, StepBudget

MIN_PREFILL = 32
"""MinP, in rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenThrottling:
    """Token throttling (gLLM, SC'25, arXiv 2504.14775, section 3): prefill and decode have budgets of their own.

    With WP rows of prefill waiting and F = free blocks / all blocks:

        WT = max(WP // T, MinP)                        what waits is spread over T steps
        UT = MaxP (F - F_min) / (1 - F_min)            less is taken up the fuller the pool
        P = min(WT, UT, block_size (free - F_min all)), at most MaxP, and 0 where F <= F_min
        D = ceil(decoding sequences / stages)

    WP is counted in row-layers over the model's layers, as P is: repairs of little depth count little. Decodes take
    turns oldest first, and one that is under way can't be taken again, so that D spreads them evenly. Where nothing
    decodes there is room for `min_prefill` rows at least: what runs would never end otherwise, and free nothing.

    Attributes:
        num_stages: stages of the pipeline.
        iterations: T, at least 1.
        max_prefill, min_prefill: MaxP and MinP, in rows of full depth.
        min_free: F_min, at least 0 and below 1.
        waiting_term: whether WT counts; else only free blocks limit prefill. For ablations, as the next one.
        kv_term: whether UT and the free blocks count.

    Raises:
        ValueError: a number out of its range.
    """

    num_stages: int = 1
    iterations: int = 8
    max_prefill: int = 2048
    min_prefill: int = MIN_PREFILL
    min_free: float = 0.05
    waiting_term: bool = True
    kv_term: bool = True

    def __post_init__(self) -> None:
        if min(self.num_stages, self.iterations) < 1:
            raise ValueError(f"num_stages is {self.num_stages} and iterations {self.iterations}: give at least 1")
        if not 1 <= self.min_prefill <= self.max_prefill:
            raise ValueError(f"min_prefill is {self.min_prefill}: give 1 to max_prefill, {self.max_prefill}")
        if not 0 <= self.min_free < 1:
            raise ValueError(f"min_free is {self.min_free}: give 0 or more, and less than 1")

    def budget(self, load: Callable[[], Load]) -> StepBudget:
        """See `BudgetPolicy.budget`."""
        now = load()
        prefill, slots = self._prefill(now), self._slots(now)
        if now.num_decoding == 0:
            prefill, slots = max(prefill, self.min_prefill), max(slots, self.min_prefill)
        decode = -(-now.num_decoding // self.num_stages)
        return StepBudget(
            rows=decode + slots,
            decode_rows=decode,
            prefill_rows=slots,
            prefill_row_layers=prefill * now.num_layers,
        )

    def _prefill(self, load: Load) -> int:
        """Rows of full depth, without the limit of free slots."""
        most = self.max_prefill
        if self.waiting_term:
            waiting = -(-load.prefill_row_layers // load.num_layers)
            most = min(most, max(waiting // self.iterations, self.min_prefill))
        if self.kv_term:
            share = (load.num_free / load.num_blocks - self.min_free) / (1 - self.min_free)
            most = min(most, max(0, int(self.max_prefill * share)))
        return most

    def _slots(self, load: Load) -> int:
        """Rows that free blocks have slots for, above the share that is held back."""
        if not self.kv_term:
            return self.max_prefill
        return min(self.max_prefill, max(0, int(BLOCK_SIZE * (load.num_free - self.min_free * load.num_blocks))))
