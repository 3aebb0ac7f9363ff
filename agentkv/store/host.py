"""The second tier: KV in the engine's host memory, copied out of the pool and, when it is wanted, back into it."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

from agentkv.store.ledger import Entry, Ledger
from agentkv.store.store import Held, SegmentKey, StoreUsage
from agentkv_engine.engine import HostResident


class HostEngine(Protocol):
    """What this tier asks of the engine."""

    def discard(self, item: HostResident) -> None:
        """See `Engine.discard`."""
        ...


class HostStore:
    """Holds residents' copies in host memory by key. It drops by itself only to stay within its budget.

    Host memory has no more room than this tier's budget, so that room is made before a copy is:

        if store.make_room(num_bytes) and (copy := engine.offload(handle)) is not None:
            store.put(key, copy)

    Args:
        engine: owns the memory.
        max_bytes: budget.
        max_pinned_bytes: most of it that users may pin; None takes half.
        on_gone: told of each key that is dropped, but not of those that are released.
    """

    def __init__(
        self,
        engine: HostEngine,
        *,
        max_bytes: int,
        max_pinned_bytes: int | None = None,
        on_gone: Callable[[SegmentKey], None] = lambda _key: None,
    ) -> None:
        self._engine = engine
        self._on_gone = on_gone
        pinnable = max_bytes // 2 if max_pinned_bytes is None else max_pinned_bytes
        self._ledger: Ledger[HostResident] = Ledger(max_bytes=max_bytes, max_pinned_bytes=pinnable)
        self._spared: Collection[SegmentKey] = ()

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return "host"

    def make_room(self, num_bytes: int) -> bool:
        """Drop what was read longest ago until so many bytes are free; False (and nothing dropped) where they can't
        be."""
        victims = self._ledger.victims_for(num_bytes, self._spared)
        if victims is None:
            return False
        for victim in victims:
            self.release(victim)
            self._on_gone(victim)
        return True

    @contextmanager
    def sparing(self, keys: Collection[SegmentKey]) -> Iterator[None]:
        """In the block none of these is dropped for want of room. Does not nest."""
        self._spared = keys
        try:
            yield
        finally:
            self._spared = ()

    def put(self, key: SegmentKey, kv: HostResident) -> bool:
        """See `Store.put`."""
        self._ledger.check_new(key)
        if not self.make_room(kv.num_bytes):
            self._engine.discard(kv)
            return False
        self._ledger.add(key, Entry(kv=kv, num_tokens=kv.resident.num_tokens, num_bytes=kv.num_bytes))
        return True

    def take(self, key: SegmentKey) -> HostResident | None:
        """What is held under `key`, which is the caller's from now on; pins end."""
        entry = self._ledger.pop(key)
        return entry.kv if entry else None

    def get(self, key: SegmentKey) -> HostResident | None:
        """See `Store.get`."""
        entry = self._ledger.get(key)
        return entry.kv if entry else None

    def __contains__(self, key: SegmentKey) -> bool:
        return key in self._ledger

    def held(self, key: SegmentKey) -> Held | None:
        """See `Store.held`."""
        return self._ledger.held(key)

    def keys(self) -> Iterator[SegmentKey]:
        """See `Store.keys`."""
        return (key for key, _ in self._ledger)

    def pin(self, key: SegmentKey) -> None:
        """See `Store.pin`."""
        self._ledger.pin(key)

    def unpin(self, key: SegmentKey) -> bool:
        """See `Store.unpin`."""
        return self._ledger.unpin(key)

    def release(self, key: SegmentKey) -> bool:
        """See `Store.release`. Requests that have it brought back are not harmed."""
        kv = self.take(key)
        if kv is not None:
            self._engine.discard(kv)
        return kv is not None

    def usage(self) -> StoreUsage:
        """See `Store.usage`."""
        return self._ledger.usage

    def held_items(self) -> list[HostResident]:
        """All that is held."""
        return [entry.kv for _, entry in self._ledger]

    def check(self) -> None:
        """See `Store.check`."""
        self._ledger.check()
