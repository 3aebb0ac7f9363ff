"""`Recognizer`: which stretches of a prompt are texts whose KV is kept, and whose copy of it to read."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from agentkv.segment.aligner import Run, Tokens, align
from agentkv.segment.context import Change, Comparison, Context, Trail
from agentkv.segment.segment import Segment
from agentkv.segment.shelf import Kept, Shelf
from agentkv.segment.text_index import TextMatch, Units
from agentkv.segment.unread import with_unread
from agentkv.tokenization import GeneratedText, Prompt, PromptMessage
from agentkv_engine.reuse import PlacedSpan, Resident

_COMPARABLE = 0.9  # rival copies with this share of the longest's tokens are chosen from by their context


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """What of a prompt can be read.

    Attributes:
        spans: sorted, disjoint; each inside one message's content.
        segments: the segments they are read from, each once.
        misses: messages that are not read, by reason: `too_short`, `unlocated` (the template hides the content),
            `unknown_text`, `unaligned` (the text is kept, its tokens differ here).
    """

    spans: tuple[PlacedSpan, ...]
    segments: tuple[Segment, ...]
    misses: Counter[str] = field(default_factory=Counter)

    @property
    def num_tokens(self) -> int:
        """Tokens that can be read."""
        return sum(span.num_tokens for span in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A copy that could be read, with the context of its first run."""

    segment: Segment
    runs: tuple[Run, ...]
    change: Change

    @property
    def num_tokens(self) -> int:
        return sum(run.num_tokens for run in self.runs)

    @property
    def cost(self) -> tuple[int, int, bool, int]:
        """Least unseen context first, then exact before approximate, then fewer hops."""
        resident = self.segment.resident
        return self.change.num_unseen, self.change.num_gone, not resident.exact, resident.hops


class Recognizer:
    """Holds the segments of all tenants and finds them in prompts. Thread-safe.

    All calls but `forget` take one lock, for milliseconds. `forget` takes none: the engine's thread leaves the handle
    in a queue (appending to a deque is atomic) which every other call empties first. A recognition that was under way
    may thus name a resident that is gone; the engine notices and prefills.

    Args:
        min_tokens: shorter messages are not kept, shorter runs not read.
    """

    def __init__(self, *, min_tokens: int = 16) -> None:
        self._min_tokens = min_tokens
        self._lock = Lock()
        self._shelf = Shelf()
        self._trail = lru_cache(maxsize=16)(_prompt_trail)

    @property
    def num_segments(self) -> int:
        """Segments held now."""
        with self._lock:
            self._shelf.drop_forgotten()
            return self._shelf.num_segments

    def recognise(self, prompt: Prompt, tenant: str) -> Recognition:
        """Find the tenant's kept texts in a prompt: whole messages first, then parts of messages."""
        misses: Counter[str] = Counter()
        spans: list[PlacedSpan] = []
        segments: dict[int, Segment] = {}
        with self._lock:
            self._shelf.drop_forgotten()
            comparisons = _Comparisons(self._trail(prompt))
            prompt_ids = np.asarray(prompt.token_ids, np.int32)
            for message in prompt.messages:
                reason = self._unfit(message)
                readings = [] if reason else list(self._readings(prompt_ids, message, tenant, comparisons))
                if reason is None and not readings:
                    reason = "unknown_text" if self._shelf.index.find(tenant, message.text) is None else "unaligned"
                if reason:
                    misses[reason] += bool(message.num_tokens or not message.located)
                for reading in readings:
                    spans += _spans(message, reading, comparisons)
                    segments[reading.segment.segment_id] = reading.segment
                    self._shelf.mark_read(reading.segment)
        return Recognition(spans=with_unread(spans), segments=tuple(segments.values()), misses=+misses)

    def wants(self, tenant: str, prompt: Prompt, message: PromptMessage) -> str | None:
        """None where the message's KV is worth keeping, else why not (see `Kept.reason`)."""
        reason = self._unfit(message)
        if reason:
            return reason
        with self._lock:
            self._shelf.drop_forgotten()
            text_id = self._shelf.index.find(tenant, message.text)
            exact = [c for c in self._shelf.copies(text_id) if c.resident.exact] if text_id is not None else ()
            if not exact:
                return None
            here = Context(trail=self._trail(prompt), position=message.start).fingerprint()
            return "duplicate" if any(copy.fingerprint == here for copy in exact) else None

    def remember(self, tenant: str, prompt: Prompt, message: PromptMessage, resident: Resident) -> Kept:
        """Register the KV of a message that `prompt` holds.

        Args:
            tenant: whose.
            prompt: the author's prompt.
            message: one of its messages.
            resident: holds exactly the tokens [message.start, message.end).

        Raises `ValueError` when it does not.
        """
        reason = self._unfit(message)
        if reason:
            return Kept(segment=None, release=(resident,), reason=reason)
        if resident.token_ids != prompt.token_ids[message.start : message.end]:
            raise ValueError(
                f"the resident's {resident.num_tokens} tokens are not message {message.index}'s "
                f"[{message.start}, {message.end}): keep exactly these positions"
            )
        context = Context(trail=self._trail(prompt), position=message.start)
        tokens = Tokens(token_ids=np.asarray(resident.token_ids, np.int32), starts=message.starts, ends=message.ends)
        return self._keep(tenant, message.text, tokens, context, resident)

    def remember_output(self, tenant: str, prompt: Prompt, generated: GeneratedText, resident: Resident) -> Kept:
        """Register the KV of a reply to `prompt`.

        Args:
            tenant: whose.
            prompt: what was replied to.
            generated: the reply (see `ChatTokenizer.generated`).
            resident: holds generated ids from `generated.first` on, none at or behind `generated.last`.

        Raises `ValueError` when it does not.
        """
        if resident.num_tokens < self._min_tokens:
            return Kept(segment=None, release=(resident,), reason="too_short")
        kept = slice(generated.head, generated.head + resident.num_tokens)
        if resident.num_tokens > generated.last - generated.first or generated.token_ids[kept] != resident.token_ids:
            raise ValueError(
                f"the resident's {resident.num_tokens} tokens are not the generated ids from {generated.first} up to "
                f"{generated.last}: keep only these"
            )
        before = (*prompt.token_ids, *generated.before)
        trail = Trail((*before, *resident.token_ids), [*_edges(prompt), len(prompt.token_ids), len(before)])
        tokens = Tokens(
            token_ids=np.asarray(resident.token_ids, np.int32), starts=generated.starts[kept], ends=generated.ends[kept]
        )
        return self._keep(tenant, generated.text, tokens, Context(trail=trail, position=len(before)), resident)

    def forget(self, handle: int) -> None:
        """The engine evicted a resident. Never waits; any thread."""
        self._shelf.forget(handle)

    def check(self) -> None:
        """Assert that texts, copies and handles agree."""
        with self._lock:
            self._shelf.drop_forgotten()
            self._shelf.check()

    def _unfit(self, message: PromptMessage) -> str | None:
        if not message.located:
            return "unlocated"
        return "too_short" if message.num_tokens < self._min_tokens else None

    def _readings(
        self, prompt_ids: NDArray[np.int32], message: PromptMessage, tenant: str, comparisons: "_Comparisons"
    ) -> Iterator[_Reading]:
        ids = prompt_ids[message.start : message.end]
        tokens = Tokens(token_ids=ids, starts=message.starts, ends=message.ends)
        whole = self._shelf.index.find(tenant, message.text)
        if whole is None:
            units = Units(starts=message.starts, ends=message.ends, least=self._min_tokens)
            groups: Iterable[list[TextMatch]] = self._shelf.index.find_parts(tenant, message.text, units)
        else:
            groups = [[TextMatch(text_id=whole, start=0, end=len(message.text), text_start=0)]]
        for rivals in groups:
            found = [r for match in rivals for r in self._copies_read(message, tokens, match, comparisons)]
            longest = max((reading.num_tokens for reading in found), default=0)
            rivalling = [reading for reading in found if reading.num_tokens >= _COMPARABLE * longest]
            if rivalling:
                yield min(rivalling, key=lambda reading: (reading.cost, -reading.num_tokens))

    def _copies_read(
        self, message: PromptMessage, tokens: Tokens, match: TextMatch, comparisons: "_Comparisons"
    ) -> Iterator[_Reading]:
        for segment in self._shelf.copies(match.text_id):
            runs = align(
                tokens,
                segment.tokens,
                start=match.start,
                end=match.end,
                kept_start=match.text_start,
                min_tokens=self._min_tokens,
            )
            if runs:
                change = comparisons.change(segment, runs[0], message)
                yield _Reading(segment=segment, runs=runs, change=change)

    def _keep(self, tenant: str, text: str, tokens: Tokens, context: Context, resident: Resident) -> Kept:
        with self._lock:
            return self._shelf.put(tenant, text, tokens, context, resident)


class _Comparisons:
    """A reader's trail against those of the authors it meets, each compared once."""

    def __init__(self, reader: Trail) -> None:
        self._reader = reader
        self._made: dict[Trail, Comparison] = {}

    def change(self, segment: Segment, run: Run, message: PromptMessage) -> Change:
        """The change for a run's first token."""
        author = segment.context.trail
        comparison = self._made.get(author)
        if comparison is None:
            comparison = self._made[author] = Comparison(author, self._reader)
        return comparison.at(segment.context.position + run.kept_start, message.start + run.start)


def _spans(message: PromptMessage, reading: _Reading, comparisons: _Comparisons) -> Iterator[PlacedSpan]:
    for rank, run in enumerate(reading.runs):
        change = comparisons.change(reading.segment, run, message) if rank else reading.change
        yield PlacedSpan(
            start=message.start + run.start,
            end=message.start + run.end,
            handle=reading.segment.resident.handle,
            resident_start=run.kept_start,
            unseen=change.unseen,
            num_gone=change.num_gone,
            hops=reading.segment.resident.hops,
        )


def _edges(prompt: Prompt) -> list[int]:
    return [edge for message in prompt.messages for edge in (message.start, message.end) if message.num_tokens]


def _prompt_trail(prompt: Prompt) -> Trail:
    return Trail(prompt.token_ids, _edges(prompt))
