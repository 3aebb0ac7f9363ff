"""Kept KV in two tiers: in the pool, where it is read, and below it in host memory.

What leaves the pool goes down, and comes back up when a request wants it. A copy that has come up stays below as well,
so that it can leave again without another copy. A key is gone when no tier holds it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from agentkv.store.eviction import SparePinned
from agentkv.store.host import HostEngine, HostStore
from agentkv.store.pool import PoolStore, ResidentEngine
from agentkv.store.store import Held, SegmentKey, StoreUsage
from agentkv_engine.engine import HostResident
from agentkv_engine.reuse import Resident


class TieredEngine(ResidentEngine, HostEngine, Protocol):
    """What the tiers ask of the engine."""

    def offload_bytes(self, handle: int) -> int:
        """See `Engine.offload_bytes`."""
        ...

    def offload(self, handle: int) -> HostResident | None:
        """See `Engine.offload`."""
        ...

    def restore(self, items: Sequence[HostResident]) -> tuple[Resident, ...]:
        """See `Engine.restore`."""
        ...

    def check_host(self, held: Sequence[HostResident]) -> None:
        """See `Engine.check_host`."""
        ...


class TieredStore:
    """A `Store` of residents over both tiers. The engine's `on_evict` must call `evicted`, its `on_missing` `missing`,
    and its eviction policy must be the one given here.

    Args:
        engine: owns residents and host memory.
        policy: the one that the engine was given.
        max_bytes: budget of the pool's tier.
        host_bytes: budget of the host's, which the engine has; 0 makes none.
        on_gone: told of each key that is dropped, but not of those that are released.
    """

    def __init__(
        self,
        engine: TieredEngine,
        policy: SparePinned,
        *,
        max_bytes: int,
        host_bytes: int = 0,
        on_gone: Callable[[SegmentKey], None] = lambda _key: None,
    ) -> None:
        self._engine = engine
        self._on_gone = on_gone
        self._pool = PoolStore(engine, policy, max_bytes=max_bytes, on_gone=self._left_pool)
        self._host = HostStore(engine, max_bytes=host_bytes, on_gone=self._left_host)
        self._key_of: dict[int, SegmentKey] = {}
        self._handle_of: dict[SegmentKey, int] = {}

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return "tiered"

    def put(self, key: SegmentKey, kv: Resident) -> bool:
        """See `Store.put`."""
        if not self._pool.put(key, kv):
            return False
        self._key_of[kv.handle], self._handle_of[key] = key, kv.handle
        return True

    def get(self, key: SegmentKey) -> Resident | None:
        """See `Store.get`."""
        resident = self._pool.get(key)
        if resident is None and (below := self._host.get(key)) is not None:
            resident = below.resident
        return resident

    def __contains__(self, key: SegmentKey) -> bool:
        return key in self._pool or key in self._host

    def held(self, key: SegmentKey) -> Held | None:
        """See `Store.held`; a key that both tiers hold is charged as in the pool."""
        return self._pool.held(key) or self._host.held(key)

    def tiers_of(self, key: SegmentKey) -> tuple[str, ...]:
        """Names of the tiers that hold a key."""
        return tuple(tier.name for tier in (self._pool, self._host) if key in tier)

    def keys(self) -> Iterator[SegmentKey]:
        """See `Store.keys`."""
        yield from self._pool.keys()
        yield from (key for key in iter(self._host.keys()) if key not in self._pool)

    def pin(self, key: SegmentKey) -> None:
        """See `Store.pin`; it is pinned where it lies now."""
        (self._host if key in self._host and key not in self._pool else self._pool).pin(key)

    def unpin(self, key: SegmentKey) -> bool:
        """See `Store.unpin`."""
        return any([self._pool.unpin(key), self._host.unpin(key)])

    def is_pinned(self, key: SegmentKey) -> bool:
        """Whether a tier holds it pinned."""
        return any(held is not None and held.pinned for held in (self._pool.held(key), self._host.held(key)))

    def release(self, key: SegmentKey) -> bool:
        """See `Store.release`."""
        if key not in self._handle_of:
            return False
        self._strike_off(key)
        self._pool.release(key)
        self._host.release(key)
        return True

    def usage_by_tier(self) -> Mapping[str, StoreUsage]:
        """How much each tier holds; what both hold counts in both."""
        return {tier.name: tier.usage() for tier in (self._pool, self._host)}

    def evicted(self, handle: int) -> None:
        """The engine's `on_evict`."""
        self._pool.evicted(handle)

    def missing(self, handles: Sequence[int]) -> None:
        """The engine's `on_missing`: bring up those that lie below, all together, or (without room) none."""
        keys = [key for handle in handles if (key := self._key_of.get(handle)) is not None]
        items = {key: item for key in keys if (item := self._host.get(key)) is not None}
        if not items:
            return
        with self._host.sparing(items.keys()):  # what leaves the pool to make room for them may take others' place
            if self._engine.restore(tuple(items.values())):
                for key, item in items.items():
                    self._pool.put(key, item.resident)

    def check(self) -> None:
        """See `Store.check`."""
        self._pool.check()
        self._host.check()
        self._engine.check_host(self._host.held_items())
        assert set(self._handle_of) == set(self.keys()), "what is booked and what is held differ"
        assert {key: handle for handle, key in self._key_of.items()} == self._handle_of, "handles and keys differ"

    def _left_pool(self, key: SegmentKey) -> None:
        """A resident goes from the pool, and can still be copied out of it."""
        if key in self._host:
            return
        handle = self._handle_of[key]
        has_room = self._host.make_room(self._engine.offload_bytes(handle))
        if has_room and (copy := self._engine.offload(handle)) is not None:
            self._host.put(key, copy)
        else:
            self._forget(key)

    def _left_host(self, key: SegmentKey) -> None:
        if key not in self._pool:
            self._forget(key)

    def _forget(self, key: SegmentKey) -> None:
        self._strike_off(key)
        self._on_gone(key)

    def _strike_off(self, key: SegmentKey) -> None:
        del self._key_of[self._handle_of.pop(key)]
