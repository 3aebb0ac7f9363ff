"""What is known of kept segments beside their KV: their authors, the threads that met them, when they were read."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from agentkv.owner import tenant_of
from agentkv.segment import Segment
from agentkv.store.store import SegmentKey

MOST_THREADS = 64
"""That a segment remembers: callers name threads, and a text that all read would gather them without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The chat behind a segment or its reading: its agent's label, and its thread where one was named."""

    agent: str
    thread: str | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class SegmentRecord:
    """One kept segment. Times are Unix times; of the threads that met it, the first `MOST_THREADS` are known."""

    key: SegmentKey
    segment: Segment
    num_bytes: int
    author: str
    created: float
    last_read: float
    num_reads: int = 0
    threads: set[str] = field(default_factory=set)

    def met_in(self, thread: str | None) -> None:
        """It was written or read in this thread."""
        if thread is not None and len(self.threads) < MOST_THREADS:
            self.threads.add(thread)


class SegmentRecords:
    """Records of each tenant's segments, the one read longest ago first. Engine thread only."""

    def __init__(self) -> None:
        self._of: dict[str, dict[SegmentKey, SegmentRecord]] = {}
        self._bytes: Counter[str] = Counter()

    def add(self, key: SegmentKey, segment: Segment, num_bytes: int, origin: Origin) -> None:
        """A segment is kept from now on."""
        now, tenant = time.time(), tenant_of(key.tenant)
        record = SegmentRecord(
            key=key, segment=segment, num_bytes=num_bytes, author=origin.agent, created=now, last_read=now
        )
        record.met_in(origin.thread)
        self._of.setdefault(tenant, {})[key] = record
        self._bytes[tenant] += num_bytes

    def read(self, key: SegmentKey, origin: Origin) -> SegmentRecord | None:
        """Note a reading; None where nothing is known of the segment (any more)."""
        records = self._of.get(tenant_of(key.tenant), {})
        record = records.pop(key, None)
        if record is None:
            return None
        records[key] = record  # at the end
        record.num_reads += 1
        record.last_read = time.time()
        record.met_in(origin.thread)
        return record

    def drop(self, key: SegmentKey) -> None:
        """It is gone; unknown ones are ignored."""
        tenant = tenant_of(key.tenant)
        record = self._of.get(tenant, {}).pop(key, None)
        if record is not None:
            self._bytes[tenant] -= record.num_bytes
            if not self._of[tenant]:
                del self._of[tenant], self._bytes[tenant]

    def of_tenant(self, tenant: str) -> tuple[SegmentRecord, ...]:
        """A tenant's, whatever the salt."""
        return tuple(self._of.get(tenant, {}).values())

    def bytes_of(self, tenant: str) -> int:
        """Bytes of a tenant's segments; shared ones count in each."""
        return self._bytes[tenant]

    def find(self, tenant: str, segment_id: str) -> SegmentRecord | None:
        """The tenant's segment of this id."""
        return next((record for record in self.of_tenant(tenant) if record.key.segment_id == segment_id), None)

    def check(self, keys: Iterable[SegmentKey]) -> None:
        """Assert that these keys, and no others, have records, and that the sums are right."""
        known = {key for records in self._of.values() for key in records}
        assert known == set(keys), f"records of {known ^ set(keys)} and what is held differ"
        for tenant, records in self._of.items():
            assert self._bytes[tenant] == sum(record.num_bytes for record in records.values())
