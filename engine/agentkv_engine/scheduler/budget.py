"""How many rows a step may have: a policy, so that static and dynamic budgets compare on equal terms."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a budget may look at.

    Attributes:
        num_running: sequences that are admitted.
        waiting_rows: rows still to compute by admitted sequences.
        free_share: unpinned blocks over all blocks.
    """

    num_running: int
    waiting_rows: int
    free_share: float


class BudgetPolicy(Protocol):
    """Decides the size of the next step."""

    def rows(self, load: Load) -> int:
        """Most rows of the next step, at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """The same number of rows in every step; decodes come first (Sarathi-Serve, arXiv 2403.02310)."""

    max_rows: int

    def rows(self, load: Load) -> int:  # noqa: ARG002
        """See `BudgetPolicy.rows`."""
        return self.max_rows
