"""How many rows a step may have: a policy, so that static and dynamic budgets compare on equal terms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agentkv_engine.scheduler.sequence import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a budget may look at.

    Attributes:
        num_layers: of the model: a row of full depth is so many row-layers.
        num_decoding: running sequences that continue their output, those whose row is under way too.
        prefill_row_layers: layers still to run for prompts, summed over rows. What waiting requests will find in the
            prefix index is not known before they are admitted: their tokens outside of reused spans all count.
        num_blocks, num_free: blocks of the pool; those that only keeps hold are as good as free.
    """

    num_layers: int
    num_decoding: int
    prefill_row_layers: int
    num_blocks: int
    num_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBudget:
    """The most that a step may hold; None sets no limit of that kind.

    Attributes:
        rows: all rows.
        decode_rows: rows that continue a sequence's output.
        prefill_rows: all other rows.
        prefill_row_layers: layers run for these, summed over rows: a repair of depth d counts d.
    """

    rows: int
    decode_rows: int | None = None
    prefill_rows: int | None = None
    prefill_row_layers: int | None = None


class BudgetPolicy(Protocol):
    """Decides the size of the next step."""

    def budget(self, load: Callable[[], Load]) -> StepBudget:
        """The next step's budget. Where nothing decodes it has room for one prefill row at least, else for one decode
        row; `load` tells what there is to do, and takes a while to."""
        ...


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """The same number of rows in every step; decodes come first (Sarathi-Serve, arXiv 2403.02310)."""

    max_rows: int

    def budget(self, load: Callable[[], Load]) -> StepBudget:  # noqa: ARG002
        """See `BudgetPolicy.budget`."""
        return StepBudget(rows=self.max_rows)


class Spending:
    """What is left of a step's budget while its rows are chosen."""

    def __init__(self, budget: StepBudget, num_layers: int) -> None:
        self._num_layers = num_layers
        self._rows = budget.rows
        self._decode_rows = budget.decode_rows
        self._prefill_rows = budget.prefill_rows
        self._row_layers = budget.prefill_row_layers

    def most(self, rows: Rows, *, decodes: bool) -> int:
        """How many of these rows, counted from the first, may run yet."""
        limit = self._decode_rows if decodes else self._prefill_rows
        most = min(len(rows), self._rows if limit is None else min(self._rows, limit))
        if decodes or self._row_layers is None or most == 0:
            return most
        return int(np.searchsorted(np.cumsum(rows.depths[:most]), self._row_layers, side="right"))

    def spend(self, rows: Rows, *, decodes: bool) -> None:
        """These rows are in the step."""
        self._rows -= len(rows)
        if decodes:
            self._decode_rows = None if self._decode_rows is None else self._decode_rows - len(rows)
            return
        self._prefill_rows = None if self._prefill_rows is None else self._prefill_rows - len(rows)
        if self._row_layers is not None:
            self._row_layers -= int(rows.depths.sum())

    @property
    def is_spent(self) -> bool:
        """Whether no prefill row of full depth may run any more."""
        if self._rows <= 0 or self._prefill_rows == 0:
            return True
        return self._row_layers is not None and self._row_layers < self._num_layers
