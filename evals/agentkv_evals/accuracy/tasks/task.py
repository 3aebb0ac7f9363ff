"""What every task answers: its items, their prompts, and what is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agentkv_evals.accuracy.cases import Case, Cell

Replies = tuple[tuple[int, ...], ...]
"""What was said at each step of an item so far, as token ids with their end token."""


class Task(Protocol):
    """Items for one model's tokenizer. A fixed version gives the same items forever."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same seed would give another item; names the data where there are any."""
        ...

    @property
    def generates(self) -> bool:
        """Whether an arm's own replies are graded, decoded by it; else its best tokens behind a forced reply."""
        ...

    @property
    def items(self) -> Sequence[tuple[Cell, int]]:
        """Kind and seed of each item."""
        ...

    def case(self, cell: Cell, seed: int, replies: Replies = ()) -> Case | None:
        """The prompt of an item after these replies; None where the item has come to its end."""
        ...

    def is_right(self, case: Case, reply: tuple[int, ...], /) -> bool | None:
        """Whether a reply is right; None where nobody can say."""
        ...

    def same_choice(self, case: Case, reply: tuple[int, ...], other: tuple[int, ...], /) -> bool | None:
        """Whether `other` chooses what `reply` (full prefill's) chose; None where there is nothing to choose."""
        ...


class TaskSource(Protocol):
    """A task whose options are known, but not yet the model."""

    def open(self, model: Path) -> Task:
        """The task for a model directory.

        Raises:
            AgentKVError: the model or the data can't be used; the message says what can.
        """
        ...
