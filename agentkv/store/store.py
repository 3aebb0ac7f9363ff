"""What every tier of kept KV can do, wherever the bytes lie."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

KV = TypeVar("KV")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentKey:
    """Names one kept copy of a segment. Tenants never meet: the same id of two tenants is two keys.

    Attributes:
        tenant: whose it is.
        segment_id: unique among the tenant's kept segments; each copy of a text has its own.
    """

    tenant: str
    segment_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    """How much a tier holds.

    Attributes:
        segments: number of keys.
        tokens: tokens whose KV they are, summed over keys.
        num_bytes: bytes charged for them, summed over keys; what two keys share is charged to both.
        pinned_bytes: bytes of those that users pinned.
    """

    segments: int = 0
    tokens: int = 0
    num_bytes: int = 0
    pinned_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a tier holds under a key: its charge, and whether users pinned it."""

    num_tokens: int
    num_bytes: int
    pinned: bool


class Store(Protocol[KV]):
    """One tier. Holds KV by key within a budget of bytes, and drops what was read longest ago when it is full.

    `KV` is what the tier holds: handles (`Resident`) in the pool, tensors in the tiers below. What a tier drops by
    itself it reports to the `on_gone` that it was made with; what is released is not reported. Called by the one thread
    that owns the engine.
    """

    @property
    def name(self) -> str:
        """The tier, as metrics show it."""
        ...

    def put(self, key: SegmentKey, kv: KV) -> bool:
        """Hold `kv`, which is the store's from now on; False (and `kv` freed) where it can't fit beside what is pinned.

        Raises:
            ValueError: the key is held already.
        """
        ...

    def get(self, key: SegmentKey) -> KV | None:
        """What is held under `key`, or None; it counts as read."""
        ...

    def __contains__(self, key: SegmentKey) -> bool:
        """Whether something is held under `key`; it does not count as read."""
        ...

    def held(self, key: SegmentKey) -> Held | None:
        """The entry of `key`, or None; it does not count as read."""
        ...

    def keys(self) -> Iterator[SegmentKey]:
        """All keys; nothing may be put or released meanwhile."""
        ...

    def pin(self, key: SegmentKey) -> None:
        """Never drop this key until it is unpinned or released. Pinning twice is pinning once.

        Raises:
            InvalidRequest: nothing is held under `key` (code `segment_not_found`), or the bytes that may be pinned
                are used up (code `pin_budget_exceeded`).
        """
        ...

    def unpin(self, key: SegmentKey) -> bool:
        """End a pin; whether there was one."""
        ...

    def release(self, key: SegmentKey) -> bool:
        """Free what is held under `key`, pinned or not; whether there was something."""
        ...

    def usage(self) -> StoreUsage:
        """How much is held now."""
        ...

    def check(self) -> None:
        """Integrity of the books; raises AssertionError."""
        ...
