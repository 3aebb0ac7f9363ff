"""Allocation and reference counts of blocks.

Two kinds of hold. *Pins* belong to running sequences: a pinned block is never taken away. *Keeps* belong to keepers
(kept segments, prefix entries): a block that only keeps hold is reclaimable, by dropping keepers in the order of a
policy. A block without holds is free. Slots are *sealed* one by one when they are kept: nobody writes them again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agentkv_engine.cache.free_blocks import FreeBlocks
from agentkv_engine.config import BLOCK_SIZE

MOST_AHEAD = 64
"""Blocks that are reclaimed beyond those wanted, in a large pool: a look at all keepers serves many allocations."""


class EvictionPolicy(Protocol):
    """The order in which keepers are dropped when blocks are wanted. Injected by the middleware."""

    def add(self, keeper_id: int) -> None:
        """A keeper is there."""
        ...

    def touch(self, keeper_id: int) -> None:
        """A keeper was read."""
        ...

    def remove(self, keeper_id: int) -> None:
        """A keeper is gone."""
        ...

    def candidates(self) -> Iterable[int]:
        """Keepers that may be dropped, first to go first."""
        ...


class LeastRecentlyUsed:
    """Drops what was read longest ago."""

    def __init__(self) -> None:
        self._order: dict[int, None] = {}

    def add(self, keeper_id: int) -> None:
        """See `EvictionPolicy.add`."""
        self._order[keeper_id] = None

    def touch(self, keeper_id: int) -> None:
        """See `EvictionPolicy.touch`."""
        del self._order[keeper_id]
        self._order[keeper_id] = None

    def remove(self, keeper_id: int) -> None:
        """See `EvictionPolicy.remove`."""
        del self._order[keeper_id]

    def candidates(self) -> Iterable[int]:
        """See `EvictionPolicy.candidates`."""
        return iter(self._order)


@dataclass(frozen=True, slots=True)
class _Keeper:
    blocks: tuple[int, ...]
    on_drop: Callable[[], None]


class BlockPool:
    """Blocks 0..num_blocks-1 with their holds. Single-threaded: the engine's thread owns it."""

    def __init__(self, num_blocks: int, policy: EvictionPolicy) -> None:
        self.num_blocks = num_blocks
        self.policy = policy
        self._free = FreeBlocks(num_blocks)
        self._pins = [0] * num_blocks
        self._keeps = [0] * num_blocks
        self._sealed = np.zeros(num_blocks * BLOCK_SIZE, dtype=bool)
        self._keepers: dict[int, _Keeper] = {}
        self._next_keeper = 1
        self._num_pinned = 0

    @property
    def num_free(self) -> int:
        """Blocks that nothing holds."""
        return len(self._free)

    @property
    def num_unpinned(self) -> int:
        """Blocks that could be allocated if every keeper were dropped."""
        return self.num_blocks - self._num_pinned

    @property
    def num_kept(self) -> int:
        """Blocks with at least one keep, each counted once however many keepers share it."""
        return self.num_blocks - self._keeps.count(0)

    def allocate(self, num: int, behind: int | None = None) -> list[int] | None:
        """Take `num` blocks, pinned once for the caller, right `behind` another where those are free; None (and nothing
        taken) where that is impossible now."""
        if num > self.num_unpinned:
            return None
        self._reclaim(num)
        if len(self._free) < num:  # the policy withholds what is left
            return None
        blocks = self._free.take(num, behind)
        self.pin(blocks)
        return blocks

    def pin(self, blocks: Sequence[int]) -> None:
        """Hold blocks for a running sequence."""
        pins = self._pins
        for block in blocks:
            if pins[block] == 0:
                self._num_pinned += 1
            pins[block] += 1

    def unpin(self, blocks: Sequence[int]) -> None:
        """Give up one pin on each of these blocks."""
        for block in blocks:
            assert self._pins[block] > 0, f"block {block} is not pinned"
            self._pins[block] -= 1
            if self._pins[block] == 0:
                self._num_pinned -= 1
                self._free_if_unheld(block)

    def keep(self, blocks: Iterable[int], on_drop: Callable[[], None], keeper_id: int | None = None) -> int:
        """Hold blocks for a keeper until it is dropped; returns its id. `on_drop` is called when that happens.

        Args:
            keeper_id: the id that it had before it was dropped; None gives it a new one.
        """
        if keeper_id is None:
            keeper_id, self._next_keeper = self._next_keeper, self._next_keeper + 1
        assert keeper_id not in self._keepers, f"keeper {keeper_id} is here"
        keeper = _Keeper(tuple(sorted(set(blocks))), on_drop)
        for block in keeper.blocks:
            self._keeps[block] += 1
        self._keepers[keeper_id] = keeper
        self.policy.add(keeper_id)
        return keeper_id

    def drop(self, keeper_id: int) -> None:
        """End a keeper; blocks that nothing else holds become free."""
        keeper = self._keepers.pop(keeper_id)
        self.policy.remove(keeper_id)
        for block in keeper.blocks:
            self._keeps[block] -= 1
            self._free_if_unheld(block)
        keeper.on_drop()

    def touch(self, keeper_id: int) -> None:
        """Tell the policy that a keeper was read."""
        self.policy.touch(keeper_id)

    def blocks_of(self, keeper_id: int) -> tuple[int, ...]:
        """The blocks that a keeper holds."""
        return self._keepers[keeper_id].blocks

    def seal(self, slots: np.ndarray) -> None:
        """Make slots read-only until their block is free again."""
        self._sealed[slots] = True

    def are_sealed(self, slots: np.ndarray) -> np.ndarray:
        """Which of these slots others may read."""
        return self._sealed[slots]

    def assert_writable(self, slots: np.ndarray) -> None:
        """Integrity: nobody writes a slot that others may read."""
        assert not self._sealed[slots].any(), f"write to shared slots {slots[self._sealed[slots]].tolist()}"

    def check(self) -> None:
        """Integrity of all counts; raises AssertionError."""
        keeps, pins = np.zeros(self.num_blocks, dtype=np.int64), np.asarray(self._pins)
        for keeper in self._keepers.values():
            keeps[list(keeper.blocks)] += 1
        assert keeps.tolist() == self._keeps, "keeps differ from the keepers' blocks"
        assert (pins >= 0).all(), "negative pins"
        assert self._num_pinned == np.count_nonzero(pins), "the count of pinned blocks is off"
        unheld = set(np.flatnonzero((pins == 0) & (keeps == 0)).tolist())
        assert sorted(unheld) == self._free.ids(), "free blocks differ from the unheld ones"
        assert len(self._free) == len(unheld), "the count of free blocks is off"
        assert not self._sealed.reshape(-1, BLOCK_SIZE)[sorted(unheld)].any(), "a free block has sealed slots"

    def _reclaim(self, num: int) -> None:
        """Drop keepers, in the policy's order, until `num` blocks are free, and some more. One pass: dropping changes
        no pins."""
        if len(self._free) >= num:
            return
        num += min(MOST_AHEAD, self.num_blocks // 256)
        for keeper_id in list(self.policy.candidates()):
            if keeper_id in self._keepers and self._frees_something(keeper_id):
                self.drop(keeper_id)
                if len(self._free) >= num:
                    return

    def _frees_something(self, keeper_id: int) -> bool:
        pins = self._pins
        return any(pins[block] == 0 for block in self._keepers[keeper_id].blocks)

    def _free_if_unheld(self, block: int) -> None:
        if self._pins[block] == 0 and self._keeps[block] == 0:
            self._sealed[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = False
            self._free.add(block)
