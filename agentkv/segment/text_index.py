"""Finds kept texts: a whole text by its digest, parts of texts by anchors. Every hit is verified, no hash is trusted.

Tenants have an index each; nothing is found across. Not thread-safe: its owner holds a lock.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash

from agentkv.segment.winnow import anchors

MAX_POSTINGS = 8
_PLACE_BITS = 32
_PLACE_MASK = (1 << _PLACE_BITS) - 1


def text_digest(text: str) -> int:
    """xxh3-128 of a text."""
    return xxhash.xxh3_128_intdigest(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMatch:
    """Characters [start, end) of the asked text are those of a kept text from its character `text_start` on."""

    text_id: int
    start: int
    end: int
    text_start: int

    @property
    def length(self) -> int:
        """Characters matched."""
        return self.end - self.start


class _TenantIndex:
    """One tenant's texts; a posting is (text id << 32 | place), so that it costs one integer."""

    def __init__(self) -> None:
        self.by_digest: dict[int, list[int]] = {}
        self.postings: dict[int, list[int] | int] = {}

    def post(self, anchor: int, posting: int) -> None:
        """Add a posting. A full list loses its oldest: texts leave in about the order in which they came."""
        found = self.postings.get(anchor)
        if found is None:
            self.postings[anchor] = posting
        elif isinstance(found, int):
            self.postings[anchor] = [found, posting]
        else:
            found.append(posting)
            del found[:-MAX_POSTINGS]

    def unpost(self, anchor: int, text_id: int) -> None:
        """Remove a text's postings under an anchor."""
        kept = [posting for posting in self.at(anchor) if posting >> _PLACE_BITS != text_id]
        if kept:
            self.postings[anchor] = kept if len(kept) > 1 else kept[0]
        else:
            self.postings.pop(anchor, None)

    def at(self, anchor: int) -> Sequence[int]:
        """Postings under an anchor, the newest last."""
        found = self.postings.get(anchor, ())
        return (found,) if isinstance(found, int) else found


class TextIndex:
    """Texts of any number of tenants, each text once a tenant."""

    def __init__(self) -> None:
        self._tenants: dict[str, _TenantIndex] = {}
        self._texts: dict[int, str] = {}
        self._last_id = 0

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def text(self, text_id: int) -> str:
        """The text itself."""
        return self._texts[text_id]

    def add(self, tenant: str, text: str) -> int:
        """Index a text and give its id; the id it has where it is there already."""
        known = self.find(tenant, text)
        if known is not None:
            return known
        self._last_id = text_id = self._last_id + 1
        index = self._tenants.setdefault(tenant, _TenantIndex())
        self._texts[text_id] = text
        index.by_digest.setdefault(text_digest(text), []).append(text_id)
        places, hashes = anchors(text)
        for place, anchor in zip(places.tolist(), hashes.tolist(), strict=True):
            index.post(anchor, text_id << _PLACE_BITS | place)
        return text_id

    def remove(self, tenant: str, text_id: int) -> None:
        """Forget a text."""
        text, index = self._texts.pop(text_id), self._tenants[tenant]
        digest = text_digest(text)
        index.by_digest[digest].remove(text_id)
        if not index.by_digest[digest]:
            del index.by_digest[digest]
        for anchor in anchors(text)[1].tolist():
            index.unpost(anchor, text_id)
        if not index.by_digest:
            del self._tenants[tenant]

    def find(self, tenant: str, text: str) -> int | None:
        """Id of the tenant's text that is exactly this one."""
        index = self._tenants.get(tenant)
        if index is None:
            return None
        return next((i for i in index.by_digest.get(text_digest(text), ()) if self._texts[i] == text), None)

    def find_parts(self, tenant: str, text: str) -> Iterator[list[TextMatch]]:
        """Stretches of `text` that occur in kept texts, from left to right.

        Each item holds the rival matches at one place, the longest first; stretches of different items are disjoint.
        A place is settled by the first anchor that hits: where a text repeats itself, a later repetition may be taken.
        Time grows with the length of `text` (times the postings' cap), not with the number of kept texts.
        """
        index = self._tenants.get(tenant)
        if index is None:
            return
        done = 0
        places, hashes = anchors(text)
        for place, anchor in zip(places.tolist(), hashes.tolist(), strict=True):
            if place < done:
                continue
            rivals: dict[int, TextMatch] = {}
            for posting in reversed(index.at(anchor)):
                match = self._extend(text, place, posting >> _PLACE_BITS, posting & _PLACE_MASK, done)
                known = rivals.get(match.text_id)
                if match.length and (known is None or known.length < match.length):
                    rivals[match.text_id] = match
            if rivals:
                matches = sorted(rivals.values(), key=lambda match: -match.length)
                done = max(match.end for match in matches)
                yield matches

    def _extend(self, text: str, place: int, text_id: int, text_place: int, floor: int) -> TextMatch:
        """The longest match through a pair of places, beginning at `floor` or later; empty where the hash lied."""
        kept = self._texts[text_id]
        back = _common_suffix(text, place, kept, text_place, min(place - floor, text_place))
        ahead = _common_prefix(text, place, kept, text_place, min(len(text) - place, len(kept) - text_place))
        start = place - back if ahead else place
        return TextMatch(text_id=text_id, start=start, end=place + ahead, text_start=text_place - (place - start))


def _common_prefix(a: str, i: int, b: str, j: int, limit: int) -> int:
    """Length of the common prefix of a[i:] and b[j:], at most `limit`; time grows with the result."""
    length, step = 0, 64
    while length < limit and step:
        step = min(step, limit - length)
        if a[i + length : i + length + step] == b[j + length : j + length + step]:
            length += step
            step *= 2
        else:
            step //= 2
    return length


def _common_suffix(a: str, i: int, b: str, j: int, limit: int) -> int:
    """Length of the common suffix of a[:i] and b[:j], at most `limit`; time grows with the result."""
    length, step = 0, 64
    while length < limit and step:
        step = min(step, limit - length)
        if a[i - length - step : i - length] == b[j - length - step : j - length]:
            length += step
            step *= 2
        else:
            step //= 2
    return length
