"""What a tenant may see and do of its own kept segments, in process; see `agentkv.api.SegmentManager`."""

import time
from collections.abc import Callable
from typing import TypeVar

from agentkv.engine_thread import EngineThread
from agentkv.errors import InvalidRequest
from agentkv.keeper import Keeper
from agentkv.segment_api import SegmentInfo, check_deletion
from agentkv.segment_records import SegmentRecord

T = TypeVar("T")
_SHOWN_CHARACTERS = 120


class KeptSegments:
    """Every call runs in the engine's thread, between two steps, and waits for it.

    Args:
        keeper: holds the segments.
        thread: the engine's.
    """

    def __init__(self, keeper: Keeper, thread: EngineThread) -> None:
        self._keeper = keeper
        self._thread = thread

    def list(self, *, tenant: str = "") -> tuple[SegmentInfo, ...]:
        """See `SegmentManager.list`. Raises ServiceClosed."""
        return self._ask(lambda: tuple(map(self._info, self._keeper.records.of_tenant(tenant))))

    def pin(self, segment_id: str, *, tenant: str = "") -> None:
        """See `SegmentManager.pin`. Raises ServiceClosed."""
        self._ask(lambda: self._keeper.pin(self._find(tenant, segment_id).key))

    def unpin(self, segment_id: str, *, tenant: str = "") -> bool:
        """See `SegmentManager.unpin`. Raises ServiceClosed."""
        return self._ask(lambda: self._keeper.unpin(self._find(tenant, segment_id).key))

    def delete(
        self,
        *,
        segment_id: str | None = None,
        thread: str | None = None,
        older_than: float | None = None,
        all: bool = False,
        tenant: str = "",
    ) -> int:
        """See `SegmentManager.delete`. Raises ServiceClosed."""
        check_deletion(segment_id, thread, older_than, all=all)

        def delete() -> int:
            found = self._keeper.records.of_tenant(tenant)
            if segment_id is not None:
                found = tuple(record for record in found if record.key.segment_id == segment_id)
            if older_than is not None:
                found = tuple(record for record in found if record.last_read < time.time() - older_than)
            if thread is not None:
                found = tuple(record for record in found if _leave(record, thread))
            for record in found:
                self._keeper.delete(record.key)
            return len(found)

        return self._ask(delete)

    def _ask(self, call: Callable[[], T]) -> T:
        return self._thread.ask(lambda _engine: call())

    def _find(self, tenant: str, segment_id: str) -> SegmentRecord:
        record = self._keeper.records.find(tenant, segment_id)
        if record is None:
            raise InvalidRequest(
                f"no segment {segment_id!r} is kept: it was dropped, deleted or never there; list what is",
                param="segment",
                code="segment_not_found",
            )
        return record

    def _info(self, record: SegmentRecord) -> SegmentInfo:
        return SegmentInfo(
            segment_id=record.key.segment_id,
            text=record.segment.text[:_SHOWN_CHARACTERS],
            tokens=record.segment.num_tokens,
            num_bytes=record.num_bytes,
            pinned=self._keeper.is_pinned(record.key),
            exact=record.segment.resident.exact,
            author=record.author,
            threads=tuple(sorted(record.threads)),
            created=record.created,
            last_read=record.last_read,
            reads=record.num_reads,
            tiers=self._keeper.tiers_of(record.key),
        )


def _leave(record: SegmentRecord, thread: str) -> bool:
    """Take a thread from those that have met a segment; whether it was the only one."""
    if thread not in record.threads:
        return False
    record.threads.discard(thread)
    return not record.threads
