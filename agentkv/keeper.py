"""What is kept of a chat: the messages its prompt computed, and its reply."""

from collections.abc import Mapping, Sequence

from agentkv.coverage import Coverage
from agentkv.owner import tenant_of
from agentkv.segment import Kept, Recognizer, Segment
from agentkv.segment_records import Origin, SegmentRecords
from agentkv.store.eviction import SparePinned
from agentkv.store.store import SegmentKey, StoreUsage
from agentkv.store.tiered import TieredStore
from agentkv.tokenization import GeneratedText, Prompt
from agentkv_engine.engine import Engine, LeastRecentlyUsed
from agentkv_engine.errors import UnknownHandle
from agentkv_engine.request import Request, TokenSources
from agentkv_engine.reuse import Resident


class Keeper:
    """Registers kept KV with the recognizer, and holds it in the pool and below. Engine thread only.

    Args:
        recognizer: finds the kept texts in later prompts.
        policy: the engine's eviction policy.
        max_tenant_bytes: most bytes of one tenant's segments, pinned ones included; None sets no limit.
    """

    def __init__(self, recognizer: Recognizer, policy: SparePinned, max_tenant_bytes: int | None = None) -> None:
        self._recognizer = recognizer
        self._policy = policy
        self._max_tenant_bytes = max_tenant_bytes
        self.records = SegmentRecords()

    @classmethod
    def eviction_policy(cls) -> SparePinned:
        """The policy to give to the engine and to the keeper: least recently used, pinned ones spared."""
        return SparePinned(LeastRecentlyUsed())

    def attach(self, engine: Engine, max_bytes: int) -> None:
        """Set the engine whose residents are held, within a budget of bytes in the pool and in its host memory."""
        self._engine = engine
        self._store = TieredStore(
            engine,
            self._policy,
            max_bytes=max_bytes,
            host_bytes=engine.config.host_kv_memory,
            on_gone=self._gone,
        )

    def evicted(self, handle: int) -> None:
        """The engine's `on_evict`."""
        self._store.evicted(handle)

    def missing(self, handles: Sequence[int]) -> None:
        """The engine's `on_missing`."""
        self._store.missing(handles)

    def usage_by_tier(self) -> Mapping[str, StoreUsage]:
        """How much each tier holds."""
        return self._store.usage_by_tier()

    def tiers_of(self, key: SegmentKey) -> tuple[str, ...]:
        """Where a segment lies."""
        return self._store.tiers_of(key)

    def mark_read(self, segments: tuple[Segment, ...], reader: Origin) -> dict[int, str]:
        """These segments are about to be read; returns their authors by handle."""
        authors = {}
        for segment in segments:
            key = _key(segment.tenant, segment.resident)
            self._store.get(key)
            record = self.records.read(key, reader)
            if record is not None:
                authors[segment.resident.handle] = record.author
        return authors

    def keep_prompt(self, request: Request, prompt: Prompt, sources: TokenSources, origin: Origin) -> None:
        """Keep the messages that this prompt computed: not those of which a part was read, from a segment or from a
        prefix that is not exact, since rows that were only read still are those of their author's context."""
        read = Coverage(sources.spans)
        for message in prompt.messages:
            if read.count(message.start, message.end):
                continue
            if self._recognizer.wants(request.tenant, prompt, message) is None:
                resident = self._engine.keep(request.request_id, message.start, message.end)
                if message.start < sources.prefix and not resident.exact:
                    self._engine.release(resident.handle)
                    continue
                self._settle(
                    request.tenant, self._recognizer.remember(request.tenant, prompt, message, resident), origin
                )

    def keep_reply(
        self, request: Request, prompt: Prompt, generated: GeneratedText, num_emitted: int, origin: Origin
    ) -> None:
        """Keep the reply's KV as decode computed it. The last emitted token was never forwarded: it has none."""
        first, last = generated.first, min(generated.last, num_emitted - 1)
        if last <= first:
            return
        start = len(prompt.token_ids)
        try:
            resident = self._engine.keep(request.request_id, start + first, start + last)
        except UnknownHandle:  # it had to give way to others and ended with what it had: its KV is gone
            return
        kept = self._recognizer.remember_output(request.tenant, prompt, generated, resident)
        self._settle(request.tenant, kept, origin)

    def pin(self, key: SegmentKey) -> None:
        """Never drop a segment. Raises InvalidRequest: it is not held, or no bytes are left for pins."""
        self._store.pin(key)

    def unpin(self, key: SegmentKey) -> bool:
        """End a pin; whether there was one."""
        return self._store.unpin(key)

    def is_pinned(self, key: SegmentKey) -> bool:
        """Whether it is held and pinned."""
        return self._store.is_pinned(key)

    def delete(self, key: SegmentKey) -> None:
        """Give a segment up, pinned or not; chats that read it go on."""
        if self._store.release(key):
            self._gone(key)

    def check(self) -> None:
        """Integrity of the books; raises AssertionError."""
        self._store.check()
        self._recognizer.check()
        self.records.check(self._store.keys())

    def _settle(self, tenant: str, kept: Kept, origin: Origin) -> None:
        """Hold what was registered; give back what it replaced."""
        for resident in kept.release:
            if self._store.release(_key(tenant, resident)):
                self.records.drop(_key(tenant, resident))
            else:
                self._engine.release(resident.handle)
        if kept.segment is None:
            return
        key = _key(tenant, kept.segment.resident)
        if self._store.put(key, kept.segment.resident):
            held = self._store.held(key)
            assert held is not None, f"{key} was put a moment ago"
            self.records.add(key, kept.segment, held.num_bytes, origin)
            self._shrink(tenant_of(tenant))
        else:
            self._recognizer.forget(kept.segment.resident.handle)

    def _shrink(self, tenant: str) -> None:
        """A tenant that is over its limit loses what it has not read for longest."""
        if self._max_tenant_bytes is None or self.records.bytes_of(tenant) <= self._max_tenant_bytes:
            return
        for record in self.records.of_tenant(tenant):
            if self.records.bytes_of(tenant) <= self._max_tenant_bytes:
                return
            if not self.is_pinned(record.key):
                self.delete(record.key)

    def _gone(self, key: SegmentKey) -> None:
        self.records.drop(key)
        self._recognizer.forget(int(key.segment_id))


def _key(tenant: str, resident: Resident) -> SegmentKey:
    return SegmentKey(tenant=tenant, segment_id=str(resident.handle))
