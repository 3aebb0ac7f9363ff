"""The first tier: residents in the engine's pool, where readers read them in place."""

from collections.abc import Callable, Iterator
from typing import Protocol

from agentkv.store.eviction import SparePinned
from agentkv.store.ledger import Entry, Ledger
from agentkv.store.store import Held, SegmentKey, StoreUsage
from agentkv_engine.reuse import Resident


class ResidentEngine(Protocol):
    """What this tier asks of the engine."""

    def release(self, handle: int) -> None:
        """See `Engine.release`."""
        ...

    def resident_bytes(self, handle: int) -> int:
        """See `Engine.resident_bytes`."""
        ...


class PoolStore:
    """Holds residents by key. One goes when it is released, when this tier is over its budget, or when the engine wants
    its blocks: its `on_evict` must call `evicted`, and its eviction policy must be the one given here.

        store.put(key, engine.keep(request_id, start, end))

    A resident is charged all blocks behind it, and blocks that several residents share are charged to each of them: the
    pool holds no more than the books say.

    Args:
        engine: owns the residents.
        policy: the one that the engine was given; it learns of pins.
        max_bytes: budget of kept segments.
        max_pinned_bytes: most of it that users may pin; None takes half. What is pinned is lost to running requests: it
            must leave the pool room for the longest prompt.
        on_gone: told of each key that is dropped, while its resident can still be copied out, but not of those that are
            released.
    """

    def __init__(
        self,
        engine: ResidentEngine,
        policy: SparePinned,
        *,
        max_bytes: int,
        max_pinned_bytes: int | None = None,
        on_gone: Callable[[SegmentKey], None] = lambda _key: None,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._on_gone = on_gone
        pinnable = max_bytes // 2 if max_pinned_bytes is None else max_pinned_bytes
        self._ledger: Ledger[Resident] = Ledger(max_bytes=max_bytes, max_pinned_bytes=pinnable)
        self._key_of: dict[int, SegmentKey] = {}

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return "pool"

    def put(self, key: SegmentKey, kv: Resident) -> bool:
        """See `Store.put`. Raises agentkv_engine.errors.UnknownHandle where the resident is gone already."""
        entry = Entry(kv=kv, num_tokens=kv.num_tokens, num_bytes=self._engine.resident_bytes(kv.handle))
        self._ledger.check_new(key)
        victims = self._ledger.victims_for(entry.num_bytes)
        if victims is None:
            self._engine.release(kv.handle)
            return False
        for victim in victims:
            handle = self._handle(victim)
            self._strike_off(victim)
            self._on_gone(victim)
            self._engine.release(handle)
        self._ledger.add(key, entry)
        self._key_of[kv.handle] = key
        return True

    def get(self, key: SegmentKey) -> Resident | None:
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
        if self._ledger.pin(key):
            self._policy.pin(self._handle(key))

    def unpin(self, key: SegmentKey) -> bool:
        """See `Store.unpin`."""
        was_pinned = self._ledger.unpin(key)
        if was_pinned:
            self._policy.unpin(self._handle(key))
        return was_pinned

    def release(self, key: SegmentKey) -> bool:
        """See `Store.release`. Running requests that read the resident go on."""
        if key not in self._ledger:
            return False
        handle = self._handle(key)
        self._strike_off(key)
        self._engine.release(handle)
        return True

    def evicted(self, handle: int) -> None:
        """The engine's `on_evict`: a resident goes. Those that this tier does not hold (yet) are ignored."""
        key = self._key_of.get(handle)
        if key is not None:
            self._strike_off(key)
            self._on_gone(key)

    def usage(self) -> StoreUsage:
        """See `Store.usage`."""
        return self._ledger.usage

    def check(self) -> None:
        """See `Store.check`; asks the engine for every resident."""
        self._ledger.check()
        held = {entry.kv.handle: key for key, entry in self._ledger}
        assert held == self._key_of, "handles and keys differ"
        for key, entry in self._ledger:
            charged, now = entry.num_bytes, self._engine.resident_bytes(entry.kv.handle)
            assert charged == now, f"{key} is charged {charged} bytes and takes {now}"

    def _strike_off(self, key: SegmentKey) -> None:
        entry = self._ledger.pop(key)
        assert entry is not None, f"{key} was held a moment ago"
        del self._key_of[entry.kv.handle]

    def _handle(self, key: SegmentKey) -> int:
        entry = self._ledger.get(key)
        assert entry is not None, f"{key} was held a moment ago"
        return entry.kv.handle
