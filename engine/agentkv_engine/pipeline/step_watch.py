"""How long a step may take before its stages count as hung."""

from collections import deque

FACTOR = 4
"""Steps may take so many times what they are predicted to take: other processes use the machine too."""

FIRST_SECONDS = 120.0
"""Allowed before any step was seen: kernels are compiled and loaded."""


class StepWatch:
    """Predicts from the steps seen last: the slowest of them, scaled to the rows of another.

    Args:
        grace: seconds allowed beyond.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._under_way: dict[int, tuple[int, float]] = {}
        self._seen: deque[tuple[int, float]] = deque(maxlen=64)
        self._last_end = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a step is under way."""
        return bool(self._under_way)

    def begin(self, number: int, num_rows: int, now: float) -> None:
        """A step was ordered."""
        self._under_way[number] = num_rows, now

    def end(self, number: int, done: float) -> None:
        """The stages had done a step by then; one that is not known was forgotten."""
        if number not in self._under_way:
            return
        num_rows, begun = self._under_way.pop(number)
        self._seen.append((num_rows, done - max(begun, self._last_end)))
        self._last_end = done

    def overdue(self, now: float) -> float | None:
        """Seconds that the oldest step has taken, if those are too many."""
        if not self._under_way:
            return None
        num_rows, begun = next(iter(self._under_way.values()))
        taken = now - max(begun, self._last_end)
        return taken if taken > self._grace + self._allowed(num_rows) else None

    def _allowed(self, num_rows: int) -> float:
        if not self._seen:
            return FIRST_SECONDS
        return FACTOR * max(seconds * max(1.0, num_rows / rows) for rows, seconds in self._seen)
