"""How much of a message is read from kept KV: the one rule by which a message is new or known."""

from collections.abc import Iterable
from itertools import accumulate

import numpy as np

from agentkv.tokenization import PromptMessage


class Coverage:
    """Positions that spans cover, for many questions about parts of a prompt.

    Args:
        spans: half-open position ranges, sorted and disjoint.
    """

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        ranges = list(spans)
        self._starts = np.asarray([start for start, _ in ranges], dtype=np.int64)
        self._ends = np.asarray([end for _, end in ranges], dtype=np.int64)
        self._before = np.asarray([0, *accumulate(end - start for start, end in ranges)], dtype=np.int64)

    def count(self, start: int, end: int) -> int:
        """Covered positions in [start, end)."""
        return self._count_before(end) - self._count_before(start)

    def is_new(self, message: PromptMessage) -> bool:
        """Whether less than half of a message is read: then it is computed as a whole, and kept as a whole. (A new
        message that quotes a known one would otherwise be in pieces for everybody after it.)"""
        return 2 * self.count(message.start, message.end) < message.num_tokens

    def _count_before(self, position: int) -> int:
        number = int(np.searchsorted(self._starts, position, side="right"))
        beyond = max(0, int(self._ends[number - 1]) - position) if number else 0
        return int(self._before[number]) - beyond
