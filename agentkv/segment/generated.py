"""The memory of generated text: so that a reply that comes back has the very tokens with which it was generated.

Tokenising a reply's text again need not give the tokens that were sampled, and then neither the prefix index nor a
segment would fit. So the ids are put in before any reuse is thought of: `off`, `exact` and `screened` are asked with
one and the same id sequence.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from agentkv.segment.winnow import anchors
from agentkv.tokenization import ChatTokenizer, GeneratedText, Splice, Splicer

_ANCHORS_A_TEXT = 4
_TEXTS_AN_ANCHOR = 8


@dataclass(slots=True)
class _Tenant:
    """One tenant's texts; the dictionary's keys are the texts themselves, the least recently used first."""

    texts: OrderedDict[str, GeneratedText] = field(default_factory=OrderedDict)
    by_anchor: dict[int, list[tuple[str, int]]] = field(default_factory=dict)


class GeneratedMemory:
    """Remembers generated ids beside their text, per tenant. Thread-safe.

    Args:
        tokenizer: made the ids.
        max_tokens: most tokens remembered, all tenants together; the tenant used longest ago loses its oldest first.
        min_part_tokens: texts of fewer tokens are recognised as whole messages only.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, max_tokens: int = 1 << 19, min_part_tokens: int = 16) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._min_part_tokens = min_part_tokens
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._num_tokens = 0
        self._lock = Lock()

    @property
    def num_tokens(self) -> int:
        """Tokens remembered now."""
        return self._num_tokens

    def remember(self, tenant: str, text: str, token_ids: Sequence[int]) -> GeneratedText | None:
        """Keep the tokens of a reply; None where `text` is not what they say (it will be tokenised like any other).

        Args:
            tenant: whose reply.
            text: as the client received it.
            token_ids: all ids as emitted, those included that were cut from the text.
        """
        generated = self._tokenizer.generated(text, token_ids)
        trimmed = self._tokenizer.generated(text.strip(), token_ids) if text != text.strip() else None
        with self._lock:
            for each in (generated, trimmed):  # many templates trim
                if each is not None:
                    self._add(tenant, each)
        return generated

    def splicer(self, tenant: str) -> Splicer:
        """Finds the tenant's generated texts in messages: whole messages, and whole replies inside longer ones."""

        def splices(texts: Sequence[str]) -> list[list[Splice]]:
            with self._lock:
                known = self._tenants.get(tenant)
                if known is None:
                    return [[] for _ in texts]
                self._tenants.move_to_end(tenant)
                return [_find(known, text) for text in texts]

        return splices

    def _add(self, tenant: str, generated: GeneratedText) -> None:
        known = self._tenants.setdefault(tenant, _Tenant())
        self._tenants.move_to_end(tenant)
        if generated.text in known.texts:
            self._drop(known, generated.text)
        known.texts[generated.text] = generated
        self._num_tokens += len(generated.token_ids)
        if len(generated.token_ids) >= self._min_part_tokens:
            for place, anchor in _rarest(generated.text):
                texts = known.by_anchor.setdefault(anchor, [])
                texts.append((generated.text, place))
                del texts[:-_TEXTS_AN_ANCHOR]
        while self._num_tokens > self._max_tokens and self._tenants:
            oldest_tenant, oldest = next(iter(self._tenants.items()))
            self._drop(oldest, next(iter(oldest.texts)))
            if not oldest.texts:
                del self._tenants[oldest_tenant]

    def _drop(self, known: _Tenant, text: str) -> None:
        num_tokens = len(known.texts.pop(text).token_ids)
        self._num_tokens -= num_tokens
        for _, anchor in _rarest(text) if num_tokens >= self._min_part_tokens else ():
            left = [item for item in known.by_anchor.get(anchor, ()) if item[0] != text]
            if left:
                known.by_anchor[anchor] = left
            else:
                known.by_anchor.pop(anchor, None)


def _rarest(text: str) -> list[tuple[int, int]]:
    """A few (place, anchor) of a text; a text that holds all of this one holds them all."""
    places, hashes = anchors(text)
    return sorted(zip(places.tolist(), hashes.tolist(), strict=True), key=lambda item: item[1])[:_ANCHORS_A_TEXT]


def _find(known: _Tenant, text: str) -> list[Splice]:
    whole = known.texts.get(text)
    if whole is not None:
        known.texts.move_to_end(text)
        return [Splice(start=0, end=len(text), generated=whole)]
    if not known.by_anchor:
        return []
    hits: set[tuple[int, str]] = set()
    places, hashes = anchors(text)
    for place, anchor in zip(places.tolist(), hashes.tolist(), strict=True):
        for inner, offset in known.by_anchor.get(anchor, ()):
            start = place - offset
            if start >= 0 and (start, inner) not in hits and text.startswith(inner, start):
                hits.add((start, inner))
    chosen: list[Splice] = []
    for start, inner in sorted(hits, key=lambda hit: (-len(hit[1]), hit[0])):  # a reply that quotes another comes first
        end = start + len(inner)
        if all(end <= other.start or other.end <= start for other in chosen):
            known.texts.move_to_end(inner)
            chosen.append(Splice(start=start, end=end, generated=known.texts[inner]))
    return sorted(chosen, key=lambda splice: splice.start)
