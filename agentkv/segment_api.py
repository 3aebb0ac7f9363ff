"""Kept segments as their owner sees and manages them: data and a protocol, shared by service, server and clients."""

from dataclasses import dataclass
from typing import Protocol

from agentkv.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInfo:
    """A kept segment, as its owner sees it.

    Attributes:
        segment_id: names it among its tenant's.
        text: the beginning of the text whose KV it is.
        tokens, num_bytes: how much it is; bytes that it shares with others are counted in each.
        tiers: where it lies: `pool`, `host` memory, or both.
        pinned: it is never dropped for want of room.
        exact: its KV is that of full prefill in its author's context.
        author: label of the agent that wrote it or first read it.
        threads: conversations in which it was written or read, as far as clients named them; the first 64.
        created, last_read: Unix times.
        reads: how often it was read.
    """

    segment_id: str
    text: str
    tokens: int
    num_bytes: int
    pinned: bool
    exact: bool
    author: str
    threads: tuple[str, ...]
    created: float
    last_read: float
    reads: int
    tiers: tuple[str, ...] = ()


class SegmentManager(Protocol):
    """What a tenant may do with its own kept segments."""

    def list(self, *, tenant: str = "") -> tuple[SegmentInfo, ...]:
        """All of them, the one read longest ago first."""
        ...

    def pin(self, segment_id: str, *, tenant: str = "") -> None:
        """Keep a segment whatever else is wanted. Raises InvalidRequest: no such segment, or no budget for pins."""
        ...

    def unpin(self, segment_id: str, *, tenant: str = "") -> bool:
        """End a pin; whether there was one. Raises InvalidRequest: no such segment."""
        ...

    def delete(
        self,
        *,
        segment_id: str | None = None,
        thread: str | None = None,
        older_than: float | None = None,
        all: bool = False,
        tenant: str = "",
    ) -> int:
        """Delete segments, pinned or not; returns how many.

        Which: one by id, those of a thread that no other thread has met, those last read more than so many seconds ago;
        several conditions must all hold. Or `all` of them. Raises InvalidRequest where nothing says which.
        """
        ...


def check_deletion(*conditions: object, all: bool) -> None:
    """Refuse to delete without saying which: a forgotten or misspelt condition must not delete everything.

    Raises:
        InvalidRequest: neither a condition nor `all`, or both.
    """
    given = [condition for condition in conditions if condition is not None]
    if not given and not all:
        message = "nothing says which segments to delete: give segment_id, thread or older_than, or all=true"
        raise InvalidRequest(message, param="all", code="missing_required_parameter")
    if given and all:
        message = "all=true deletes every segment, and a condition only some: give one or the other"
        raise InvalidRequest(message, param="all", code="invalid_value")
