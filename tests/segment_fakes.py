"""A `SegmentManager` over a dictionary."""

from agentkv.errors import InvalidRequest
from agentkv.segment_api import SegmentInfo


class FakeSegments:
    """Segments by id, with the threads that have met them.

    Attributes:
        pinned: ids.
        full_at: how many pins there is room for.
    """

    def __init__(self, threads: dict[str, set[str]]) -> None:
        self.threads = threads
        self.pinned: set[str] = set()
        self.full_at = 99

    def list(self, *, tenant: str = "") -> tuple[SegmentInfo, ...]:
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
        if segment_id not in self.threads or len(self.pinned) >= self.full_at:
            raise InvalidRequest("no such segment, or no room")
        self.pinned.add(segment_id)

    def unpin(self, segment_id: str, *, tenant: str = "") -> bool:
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
        tenant: str = "",
    ) -> int:
        gone = [each for each, threads in self.threads.items() if each == segment_id or threads == {thread}]
        for each in gone:
            del self.threads[each]
            self.pinned.discard(each)
        return len(gone)
