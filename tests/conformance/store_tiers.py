"""The tiers that the store suite runs on, each with what it needs around it. New ones join `TIERS`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentkv.store.eviction import SparePinned
from agentkv.store.host import HostStore
from agentkv.store.pool import PoolStore
from agentkv.store.store import SegmentKey, Store
from agentkv_engine.engine import HostResident, LeastRecentlyUsed
from agentkv_engine.errors import UnknownHandle
from agentkv_engine.reuse import Resident

TOKEN_BYTES = 10
MAX_BYTES, MAX_PINNED_BYTES = 1000, 500


class FakeEngine:
    """Residents without a model: hands out handles and drops keepers as the block pool does."""

    def __init__(self, policy: SparePinned, on_evict: Callable[[int], None]) -> None:
        self.residents: dict[int, Resident] = {}
        self._policy = policy
        self._on_evict = on_evict
        self._next = 1

    def keep(self, num_tokens: int) -> Resident:
        kept = Resident(handle=self._next, token_ids=tuple(range(num_tokens)), exact=True, hops=0)
        self.residents[kept.handle] = kept
        self._policy.add(kept.handle)
        self._next += 1
        return kept

    def resident_bytes(self, handle: int) -> int:
        return self._find(handle).num_tokens * TOKEN_BYTES

    def release(self, handle: int) -> None:
        self._find(handle)
        del self.residents[handle]
        self._policy.remove(handle)

    def evict_one(self) -> None:
        """Blocks are wanted: the first candidate goes."""
        victim = next(iter(self._policy.candidates()), None)
        if victim is not None:
            self.release(victim)
            self._on_evict(victim)

    def _find(self, handle: int) -> Resident:
        if handle not in self.residents:
            raise UnknownHandle(f"no resident has handle {handle}")
        return self.residents[handle]


@dataclass
class Tier:
    """A tier under test.

    Attributes:
        store: holds at most MAX_BYTES, pins at most MAX_PINNED_BYTES of them, charges TOKEN_BYTES a token.
        make: something of so many tokens to put in.
        num_alive: how many things made were not freed.
        shrink: somebody else takes the memory of one unpinned thing; None where nobody can.
        gone: keys that the store dropped by itself.
    """

    store: Store[Any]
    make: Callable[[int], Any]
    num_alive: Callable[[], int]
    shrink: Callable[[], None] | None
    gone: list[SegmentKey] = field(default_factory=list)


def pool_tier() -> Tier:
    gone: list[SegmentKey] = []
    policy = SparePinned(LeastRecentlyUsed())

    def on_evict(handle: int) -> None:
        store.evicted(handle)

    engine = FakeEngine(policy, on_evict)
    store = PoolStore(engine, policy, max_bytes=MAX_BYTES, max_pinned_bytes=MAX_PINNED_BYTES, on_gone=gone.append)
    return Tier(store, engine.keep, lambda: len(engine.residents), engine.evict_one, gone)


class FakeHostMemory:
    """Copies in host memory, without their bytes."""

    def __init__(self) -> None:
        self.held: list[HostResident] = []

    def make(self, num_tokens: int) -> HostResident:
        resident = Resident(handle=len(self.held), token_ids=tuple(range(num_tokens)), exact=True, hops=0)
        copy = HostResident(
            resident=resident, homes_N=np.arange(num_tokens), blocks=(), num_bytes=num_tokens * TOKEN_BYTES
        )
        self.held.append(copy)
        return copy

    def discard(self, item: HostResident) -> None:
        self.held.remove(item)


def host_tier() -> Tier:
    gone: list[SegmentKey] = []
    memory = FakeHostMemory()
    store = HostStore(memory, max_bytes=MAX_BYTES, max_pinned_bytes=MAX_PINNED_BYTES, on_gone=gone.append)
    return Tier(store, memory.make, lambda: len(memory.held), None, gone)


TIERS = {"pool": pool_tier, "host": host_tier}
