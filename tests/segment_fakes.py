"""A `SegmentManager` over a dictionary."""

import threading

from agentkv.errors import InvalidRequest
from agentkv.segment_api import SegmentInfo


class FakeSegments:
    """Segments by id, with the threads that have met them.

    Attributes:
        pinned: ids.
        full_at: how many pins there is room for.
        failure: raised by every call.
        slow: awaited by `list`, which sets `listing` first.
    """

    def __init__(self, threads: dict[str, set[str]]) -> None:
        self.threads = threads
        self.pinned: set[str] = set()
        self.full_at = 99
        self.failure: Exception | None = None
        self.listing = threading.Event()
        self.slow: threading.Event | None = None

    def _called(self) -> None:
        if self.failure is not None:
            raise self.failure

    def list(self, *, tenant: str = "") -> tuple[SegmentInfo, ...]:
        self._called()
        self.listing.set()
        if self.slow is not None:
            self.slow.wait()
        return tuple(
            SegmentInfo(
                segment_id=segment_id,
                text="",
                tokens=16,
                num_bytes=1,
                pinned=segment_id in self.pinned,
                exact=True,
                author="",
                threads=tuple(sorted(threads)),
                created=0.0,
                last_read=0.0,
                reads=0,
            )
            for segment_id, threads in self.threads.items()
        )

    def pin(self, segment_id: str, *, tenant: str = "") -> None:
        self._called()
        if segment_id not in self.threads or len(self.pinned) >= self.full_at:
            raise InvalidRequest("no such segment, or no room")
        self.pinned.add(segment_id)

    def unpin(self, segment_id: str, *, tenant: str = "") -> bool:
        self._called()
        if segment_id not in self.threads:
            raise InvalidRequest("no such segment")
        self.pinned.discard(segment_id)
        return True

    def delete(
        self,
        *,
        segment_id: str | None = None,
        thread: str | None = None,
        older_than: float | None = None,
        all: bool = False,
        tenant: str = "",
    ) -> int:
        gone = [each for each, threads in self.threads.items() if each == segment_id or threads == {thread}]
        for each in gone:
            del self.threads[each]
            self.pinned.discard(each)
        return len(gone)
