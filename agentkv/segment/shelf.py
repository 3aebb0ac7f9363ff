"""The shelf on which segments lie: by text, at most two copies of each, and by the handle of their KV."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from agentkv.segment.aligner import Tokens
from agentkv.segment.context import Context
from agentkv.segment.segment import Segment
from agentkv.segment.text_index import TextIndex, text_digest
from agentkv_engine.reuse import Resident

MAX_COPIES = 2
_GONE_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of a resident that was offered.

    Attributes:
        segment: None where it was not kept.
        release: residents to give back to the engine: a copy that was replaced, or the offered one.
        reason: why it was not kept: `too_short`, `unlocated`, `duplicate`, `better_copies`, `segment_gone`.
    """

    segment: Segment | None
    release: tuple[Resident, ...] = ()
    reason: str | None = None


class Shelf:
    """Segments of all tenants. Not thread-safe, its owner holds a lock; only `forget` may be called without it."""

    def __init__(self) -> None:
        self.index = TextIndex()
        self._copies: dict[int, list[Segment]] = {}
        self._by_handle: dict[int, tuple[int, Segment]] = {}
        self._forgotten: deque[int] = deque()
        self._gone: OrderedDict[int, None] = OrderedDict()
        self._last_id = 0

    @property
    def num_segments(self) -> int:
        """Segments on the shelf."""
        return len(self._by_handle)

    def copies(self, text_id: int) -> Sequence[Segment]:
        """The copies of a text, the one read last at the end."""
        return self._copies[text_id]

    def put(self, tenant: str, text: str, tokens: Tokens, context: Context, resident: Resident) -> Kept:
        """Add a copy of a text, unless those that lie here are better; a third one drives another out."""
        self.drop_forgotten()
        if resident.handle in self._gone:
            return Kept(segment=None, reason="segment_gone")
        self._last_id += 1
        segment = Segment(
            segment_id=self._last_id,
            tenant=tenant,
            text=text,
            digest=text_digest(text),
            tokens=tokens,
            context=context,
            fingerprint=context.fingerprint(),
            resident=resident,
        )
        text_id = self.index.add(tenant, text)
        copies = self._copies.setdefault(text_id, [])
        copies.append(segment)
        self._by_handle[resident.handle] = (text_id, segment)
        victim, reason = _superfluous(copies)
        if victim is None:
            return Kept(segment=segment)
        self._drop(victim.resident.handle)
        kept = None if victim is segment else segment
        return Kept(segment=kept, release=(victim.resident,), reason=None if kept else reason)

    def mark_read(self, segment: Segment) -> None:
        """Note that a copy was read: of equals, the one not read for longest leaves first."""
        copies = self._copies[self._by_handle[segment.resident.handle][0]]
        copies.remove(segment)
        copies.append(segment)

    def forget(self, handle: int) -> None:
        """Leave word that a resident is gone; any thread, no lock (appending to a deque is atomic)."""
        self._forgotten.append(handle)

    def drop_forgotten(self) -> None:
        """Drop the segments whose residents are gone."""
        while self._forgotten:
            handle = self._forgotten.popleft()
            if handle in self._by_handle:
                self._drop(handle)
            else:  # evicted before it was put here
                self._gone[handle] = None
                if len(self._gone) > _GONE_REMEMBERED:
                    self._gone.popitem(last=False)

    def check(self) -> None:
        """Assert that texts, copies and handles agree."""
        copies = [segment for segments in self._copies.values() for segment in segments]
        assert sorted(segment.resident.handle for segment in copies) == sorted(self._by_handle)
        assert len(self.index) == len(self._copies)
        for text_id, segments in self._copies.items():
            assert 0 < len(segments) <= MAX_COPIES
            assert {self.index.text(text_id)} == {segment.text for segment in segments}
            assert len({segment.tenant for segment in segments}) == 1
            assert all(segment.tokens.token_ids.tolist() == list(segment.token_ids) for segment in segments)

    def _drop(self, handle: int) -> None:
        text_id, segment = self._by_handle.pop(handle)
        self._copies[text_id].remove(segment)
        if not self._copies[text_id]:
            del self._copies[text_id]
            self.index.remove(segment.tenant, text_id)


def _superfluous(copies: list[Segment]) -> tuple[Segment | None, str]:
    """Of a text's copies (the newest last, before it in the order of their last reading) the one to let go, and why."""

    def worth(segment: Segment) -> tuple[bool, int, int]:
        return segment.resident.exact, -segment.resident.hops, segment.num_tokens

    newest = copies[-1]
    twin = next((copy for copy in copies[:-1] if copy.fingerprint == newest.fingerprint), None)
    if twin is not None:
        return min(newest, twin, key=worth), "duplicate"
    if len(copies) <= MAX_COPIES:
        return None, ""
    # An exact copy never makes room for an approximate one: what is read would drift from hop to hop.
    return min(copies, key=lambda copy: worth(copy)[:2]), "better_copies"
