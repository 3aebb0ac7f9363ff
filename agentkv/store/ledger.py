"""The books of a tier: what it holds under which key, in order of use, with pins and a budget of bytes."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Generic

from agentkv.errors import InvalidRequest
from agentkv.store.store import KV, Held, SegmentKey, StoreUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[KV]):
    """What is held under a key, and what it is charged."""

    kv: KV
    num_tokens: int
    num_bytes: int


class Ledger(Generic[KV]):
    """Entries by key, those that may be dropped in order of their last use. Every operation is O(1), amortised.

    Args:
        max_bytes: most bytes to hold.
        max_pinned_bytes: most bytes of them that may be pinned.
    """

    def __init__(self, *, max_bytes: int, max_pinned_bytes: int) -> None:
        if not 0 <= max_pinned_bytes <= max_bytes:
            raise ValueError(f"{max_pinned_bytes} pinned bytes of {max_bytes}: give 0 <= max_pinned_bytes <= max_bytes")
        self.max_bytes = max_bytes
        self.max_pinned_bytes = max_pinned_bytes
        self._loose: dict[SegmentKey, Entry[KV]] = {}  # read longest ago first
        self._pinned: dict[SegmentKey, Entry[KV]] = {}
        self._usage = StoreUsage()

    @property
    def usage(self) -> StoreUsage:
        """How much is held now."""
        return self._usage

    def __contains__(self, key: SegmentKey) -> bool:
        return key in self._loose or key in self._pinned

    def __iter__(self) -> Iterator[tuple[SegmentKey, Entry[KV]]]:
        yield from self._loose.items()
        yield from self._pinned.items()

    def held(self, key: SegmentKey) -> Held | None:
        """See `Store.held`."""
        entry = self._loose.get(key) or self._pinned.get(key)
        if entry is None:
            return None
        return Held(num_tokens=entry.num_tokens, num_bytes=entry.num_bytes, pinned=key in self._pinned)

    def get(self, key: SegmentKey) -> Entry[KV] | None:
        """The entry of a key, which counts as read now."""
        entry = self._loose.pop(key, None)
        if entry is None:
            return self._pinned.get(key)
        self._loose[key] = entry
        return entry

    def add(self, key: SegmentKey, entry: Entry[KV]) -> None:
        """Book an entry for which `victims_for` found room and whose victims are struck off."""
        assert key not in self, f"{key} is booked twice"
        assert self._usage.num_bytes + entry.num_bytes <= self.max_bytes, f"no room was made for {key}"
        self._loose[key] = entry
        self._charge(entry, 1)

    def pop(self, key: SegmentKey) -> Entry[KV] | None:
        """Strike an entry off, pinned or not."""
        self.unpin(key)
        entry = self._loose.pop(key, None)
        if entry is not None:
            self._charge(entry, -1)
        return entry

    def check_new(self, key: SegmentKey) -> None:
        """Raises ValueError: the key is held already."""
        if key in self:
            raise ValueError(f"{key} is held already: release it first, or give the copy an id of its own")

    def victims_for(self, num_bytes: int, spared: Collection[SegmentKey] = ()) -> list[SegmentKey] | None:
        """Keys to drop so that a new one of `num_bytes` fits, read longest ago first and none of `spared`; None where
        it can't."""
        excess = self._usage.num_bytes + num_bytes - self.max_bytes
        if self._usage.pinned_bytes + num_bytes > self.max_bytes:
            return None
        victims: list[SegmentKey] = []
        for victim, entry in self._loose.items():
            if excess <= 0:
                break
            if victim not in spared:
                victims.append(victim)
                excess -= entry.num_bytes
        return victims if excess <= 0 else None

    def pin(self, key: SegmentKey) -> bool:
        """See `Store.pin`; whether it was not pinned before."""
        if key in self._pinned:
            return False
        entry = self._loose.get(key)
        if entry is None:
            raise InvalidRequest(
                f"no segment {key.segment_id!r} is held: it was dropped, released or never kept; send its text again",
                param="segment",
                code="segment_not_found",
            )
        room = self.max_pinned_bytes - self._usage.pinned_bytes
        if entry.num_bytes > room:
            raise InvalidRequest(
                f"pinning segment {key.segment_id!r} takes {entry.num_bytes} bytes, and {room} of "
                f"{self.max_pinned_bytes} are left for pins: unpin others or raise the budget",
                param="segment",
                code="pin_budget_exceeded",
            )
        self._pinned[key] = self._loose.pop(key)
        self._usage = replace(self._usage, pinned_bytes=self._usage.pinned_bytes + entry.num_bytes)
        return True

    def unpin(self, key: SegmentKey) -> bool:
        """End a pin; the entry counts as read now. Whether there was one."""
        entry = self._pinned.pop(key, None)
        if entry is None:
            return False
        self._loose[key] = entry
        self._usage = replace(self._usage, pinned_bytes=self._usage.pinned_bytes - entry.num_bytes)
        return True

    def check(self) -> None:
        """Integrity of the sums and bounds; raises AssertionError."""
        entries = [entry for _, entry in self]
        assert not self._loose.keys() & self._pinned.keys(), "a key is both pinned and not"
        counted = StoreUsage(
            segments=len(entries),
            tokens=sum(entry.num_tokens for entry in entries),
            num_bytes=sum(entry.num_bytes for entry in entries),
            pinned_bytes=sum(entry.num_bytes for entry in self._pinned.values()),
        )
        assert counted == self._usage, f"the books say {self._usage}, the entries {counted}"
        assert self._usage.num_bytes <= self.max_bytes, f"{self._usage} is over the budget of {self.max_bytes} bytes"
        assert self._usage.pinned_bytes <= self.max_pinned_bytes, f"{self._usage} has too many pinned bytes"

    def _charge(self, entry: Entry[KV], sign: int) -> None:
        self._usage = replace(
            self._usage,
            segments=self._usage.segments + sign,
            tokens=self._usage.tokens + sign * entry.num_tokens,
            num_bytes=self._usage.num_bytes + sign * entry.num_bytes,
        )
