"""Which blocks are free. They are handed out as neighbours where that can be: keys that lie in one stretch are read
where they lie, and need not be gathered.
"""

import numpy as np


class FreeBlocks:
    """Blocks 0..num_blocks-1, all free at first."""

    def __init__(self, num_blocks: int) -> None:
        self._is_free = np.ones(num_blocks, dtype=bool)
        self._num_free = num_blocks

    def __len__(self) -> int:
        return self._num_free

    def ids(self) -> list[int]:
        """The free blocks, ascending."""
        return np.flatnonzero(self._is_free).tolist()

    def add(self, block: int) -> None:
        """A block is free again."""
        assert not self._is_free[block], f"block {block} is free already"
        self._is_free[block] = True
        self._num_free += 1

    def take(self, num: int, behind: int | None = None) -> list[int]:
        """`num` of the free blocks: those right behind a block first, then from the longest stretches. What begins anew
        begins in the middle of a stretch, so that it and its neighbour before it can grow."""
        assert num <= self._num_free
        blocks = [] if behind is None else self._take_run(behind + 1, num)
        if len(blocks) < num:
            edges = np.flatnonzero(np.diff(self._is_free.view(np.int8), prepend=0, append=0))
            starts, lengths = edges[::2], edges[1::2] - edges[::2]
            for stretch in np.argsort(-lengths, kind="stable").tolist():
                spare = max(int(lengths[stretch]) - (num - len(blocks)), 0)
                blocks += self._take_run(int(starts[stretch]) + spare // 2, num - len(blocks))
                if len(blocks) == num:
                    break
        return blocks

    def _take_run(self, start: int, num: int) -> list[int]:
        """Consecutive free blocks from `start` on, at most `num`."""
        window = self._is_free[start : start + num]
        size = len(window) if window.all() else int(window.argmin())
        window[:size] = False
        self._num_free -= size
        return list(range(start, start + size))
