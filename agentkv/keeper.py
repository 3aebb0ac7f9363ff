"""What is kept of a chat: the messages its prompt computed, and its reply."""

from agentkv.coverage import Coverage
from agentkv.segment import Kept, Recognizer, Segment
from agentkv.store.eviction import SparePinned
from agentkv.store.pool import PoolStore
from agentkv.store.store import SegmentKey
from agentkv.tokenization import GeneratedText, Prompt
from agentkv_engine.engine import Engine, LeastRecentlyUsed
from agentkv_engine.errors import UnknownHandle
from agentkv_engine.request import Request, TokenSources
from agentkv_engine.reuse import Resident


class Keeper:
    """Registers kept KV with the recognizer, and holds it in the pool tier. Engine thread only.

    Args:
        recognizer: finds the kept texts in later prompts.
        policy: the engine's eviction policy.
    """

    def __init__(self, recognizer: Recognizer, policy: SparePinned) -> None:
        self._recognizer = recognizer
        self._policy = policy

    @classmethod
    def eviction_policy(cls) -> SparePinned:
        """The policy to give to the engine and to the keeper: least recently used, pinned ones spared."""
        return SparePinned(LeastRecentlyUsed())

    def attach(self, engine: Engine, max_bytes: int) -> None:
        """Set the engine whose residents are held, within a budget of bytes."""
        self._engine = engine
        self._store = PoolStore(engine, self._policy, max_bytes=max_bytes, on_gone=self._gone)

    def evicted(self, handle: int) -> None:
        """The engine's `on_evict`."""
        self._store.evicted(handle)

    def mark_read(self, segments: tuple[Segment, ...]) -> None:
        """These segments are about to be read."""
        for segment in segments:
            self._store.get(_key(segment.tenant, segment.resident))

    def keep_prompt(self, request: Request, prompt: Prompt, sources: TokenSources) -> None:
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
                self._settle(request.tenant, self._recognizer.remember(request.tenant, prompt, message, resident))

    def keep_reply(self, request: Request, prompt: Prompt, generated: GeneratedText, num_emitted: int) -> None:
        """Keep the reply's KV as decode computed it. The last emitted token was never forwarded: it has none."""
        first, last = generated.first, min(generated.last, num_emitted - 1)
        if last <= first:
            return
        start = len(prompt.token_ids)
        try:
            resident = self._engine.keep(request.request_id, start + first, start + last)
        except UnknownHandle:  # it had to give way to others and ended with what it had: its KV is gone
            return
        self._settle(request.tenant, self._recognizer.remember_output(request.tenant, prompt, generated, resident))

    def check(self) -> None:
        """Integrity of the books; raises AssertionError."""
        self._store.check()
        self._recognizer.check()

    def _settle(self, tenant: str, kept: Kept) -> None:
        """Hold what was registered; give back what it replaced."""
        for resident in kept.release:
            if not self._store.release(_key(tenant, resident)):
                self._engine.release(resident.handle)
        if kept.segment is not None:
            resident = kept.segment.resident
            if not self._store.put(_key(tenant, resident), resident):
                self._recognizer.forget(resident.handle)

    def _gone(self, key: SegmentKey) -> None:
        self._recognizer.forget(int(key.segment_id))


def _key(tenant: str, resident: Resident) -> SegmentKey:
    return SegmentKey(tenant=tenant, segment_id=str(resident.handle))
