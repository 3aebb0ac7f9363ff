"""Bringing kept KV back up: what is on its way keeps its place below."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from agentkv.store.eviction import SparePinned
from agentkv.store.store import SegmentKey
from agentkv.store.tiered import TieredStore
from agentkv_engine.engine import HostResident, LeastRecentlyUsed
from agentkv_engine.reuse import Resident

KEYS = [SegmentKey(tenant="", segment_id=str(handle)) for handle in range(4)]


class FakeEngine:
    """Residents of one byte each; `on_restore` is what restoring does."""

    def __init__(self) -> None:
        self.on_restore: Callable[[], None] = lambda: None
        self.discarded: list[int] = []

    def release(self, handle: int) -> None: ...

    def resident_bytes(self, handle: int) -> int:
        return 1

    def offload_bytes(self, handle: int) -> int:
        return 1

    def offload(self, handle: int) -> HostResident:
        return HostResident(resident=resident(handle), homes_N=np.zeros(1, dtype=np.int64), blocks=(), num_bytes=1)

    def restore(self, items: Sequence[HostResident]) -> tuple[Resident, ...]:
        self.on_restore()
        return tuple(item.resident for item in items)

    def discard(self, item: HostResident) -> None:
        self.discarded.append(item.resident.handle)

    def check_host(self, held: Sequence[HostResident]) -> None: ...


def resident(handle: int) -> Resident:
    return Resident(handle=handle, token_ids=(handle,), exact=True, hops=0)


def full_store() -> tuple[TieredStore, FakeEngine]:
    """Two below, where there is no more room, and two in the pool, where there is none either."""
    engine = FakeEngine()
    store = TieredStore(engine, SparePinned(LeastRecentlyUsed()), max_bytes=2, host_bytes=2)
    for handle, key in enumerate(KEYS):
        assert store.put(key, resident(handle))
    assert [store.tiers_of(key) for key in KEYS] == [("host",), ("host",), ("pool",), ("pool",)]
    return store, engine


def test_what_comes_up_keeps_its_place_below() -> None:
    """One that leaves the pool for it takes the place of another."""
    store, engine = full_store()
    engine.on_restore = lambda: store.evicted(2)
    store.missing([0, 0])
    assert [store.tiers_of(key) for key in KEYS] == [("pool", "host"), (), ("host",), ("pool",)]
    assert engine.discarded == [1]
    store.check()


def test_nothing_on_its_way_up_is_dropped_for_what_goes_down() -> None:
    store, engine = full_store()
    engine.on_restore = lambda: store.evicted(2)
    store.missing([0, 1])
    assert [store.tiers_of(key) for key in KEYS] == [("pool", "host"), ("pool", "host"), (), ()]
    assert engine.discarded == []
    store.check()


def test_a_failure_on_the_way_up_loses_nothing() -> None:
    store, engine = full_store()
    store.pin(KEYS[1])

    def fail() -> None:
        raise MemoryError

    engine.on_restore = fail
    with pytest.raises(MemoryError):
        store.missing([0, 1])
    assert [store.tiers_of(key) for key in KEYS[:2]] == [("host",), ("host",)]
    assert store.is_pinned(KEYS[1])
    store.check()
    assert store.release(KEYS[2])
    engine.on_restore = lambda: None
    store.missing([0])
    assert store.tiers_of(KEYS[0]) == ("pool", "host")
