"""Finds kept texts: a whole text by its digest, parts of texts by anchors. Every hit is verified, no hash is trusted.

Tenants have an index each; nothing is found across. Not thread-safe: its owner holds a lock.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import xxhash
from numpy.typing import NDArray

from agentkv.segment.grams import Grams
from agentkv.segment.postings import Postings
from agentkv.segment.winnow import GRAM, anchor_places, anchors, gram_hashes


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What a stretch of a text must hold to be of use: so many whole units, of which each has its characters.

    Attributes:
        starts, ends: [T], characters [starts[t], ends[t]) of unit t, never decreasing.
        least: so many of them.
    """

    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    least: int

    def are_in(self, start: int, end: int) -> bool:
        """Whether characters [start, end) hold enough."""
        first, last = np.searchsorted(self.starts, start), np.searchsorted(self.ends, end, side="right")
        return int(last - first) >= self.least

    def far_ends(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two places for each of these: a stretch through a place that holds enough begins before the first (or at it),
        or ends behind the second (or at it). -1 where it can't."""
        before = np.searchsorted(self.starts, places)
        ahead = (self.least + 1) // 2
        first, last = before - (self.least - ahead + 1), before + ahead - 1
        begins = np.where(first >= 0, self.starts[np.maximum(first, 0)], -1)
        ends = np.where(last < len(self.ends), self.ends[np.minimum(last, len(self.ends) - 1)], -1)
        return begins, ends


class _TenantIndex:
    """One tenant's texts."""

    def __init__(self) -> None:
        self.by_digest: dict[int, list[int]] = {}
        self.postings = Postings()


class TextIndex:
    """Texts of any number of tenants, each text once a tenant."""

    def __init__(self) -> None:
        self._tenants: dict[str, _TenantIndex] = {}
        self._texts: dict[int, str] = {}
        self._grams = Grams()
        self._free_ids: list[int] = []

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def text(self, text_id: int) -> str:
        """The text itself."""
        return self._texts[text_id]

    def add(self, tenant: str, text: str) -> int:
        """Index a text and give its id; the id it has where it is there already. Ids of removed texts come again."""
        known = self.find(tenant, text)
        if known is not None:
            return known
        text_id = self._free_ids.pop() if self._free_ids else len(self._texts)
        index = self._tenants.setdefault(tenant, _TenantIndex())
        self._texts[text_id] = text
        index.by_digest.setdefault(text_digest(text), []).append(text_id)
        grams = gram_hashes(text)
        self._grams.put(text_id, grams)
        places = anchor_places(grams)
        index.postings.add(text_id, places, grams[places])
        return text_id

    def remove(self, tenant: str, text_id: int) -> None:
        """Forget a text."""
        text, index = self._texts.pop(text_id), self._tenants[tenant]
        digest = text_digest(text)
        index.by_digest[digest].remove(text_id)
        if not index.by_digest[digest]:
            del index.by_digest[digest]
        index.postings.remove(text_id, anchors(text)[1])
        self._grams.drop(text_id)
        self._free_ids.append(text_id)
        if not index.by_digest:
            del self._tenants[tenant]

    def find(self, tenant: str, text: str) -> int | None:
        """Id of the tenant's text that is exactly this one."""
        index = self._tenants.get(tenant)
        if index is None:
            return None
        return next((i for i in index.by_digest.get(text_digest(text), ()) if self._texts[i] == text), None)

    def find_parts(self, tenant: str, text: str, units: Units | None = None) -> Iterator[list[TextMatch]]:
        """Stretches of `text` that occur in kept texts, from left to right.

        Each item holds the rival matches at one place, the longest first; stretches of different items are disjoint.
        A place is settled by the first anchor that hits: where a text repeats itself, a later repetition may be taken.
        Time grows with the length of `text` (times the postings' cap), not with the number of kept texts.

        Args:
            tenant: whose texts.
            text: what is asked.
            units: leave out stretches that hold too little; None gives all.
        """
        index = self._tenants.get(tenant)
        if index is None:
            return
        grams = gram_hashes(text)
        places = anchor_places(grams)
        which, text_ids, text_places = index.postings.find(grams[places])
        pairs = places[which], text_ids, text_places
        if units is not None:
            pairs = self._promising(grams, units, *pairs)
        done = 0
        for place, postings in groupby(zip(*(each.tolist() for each in pairs), strict=True), itemgetter(0)):
            if place < done:
                continue
            rivals: dict[int, TextMatch] = {}
            for _, text_id, text_place in postings:
                match = self._extend(text, place, text_id, text_place, done)
                known = rivals.get(text_id)
                enough = match.length if units is None else units.are_in(match.start, match.end)
                if enough and (known is None or known.length < match.length):
                    rivals[text_id] = match
            if rivals:
                matches = sorted(rivals.values(), key=lambda match: -match.length)
                done = max(match.end for match in matches)
                yield matches

    def _promising(
        self,
        grams: NDArray[np.uint64],
        units: Units,
        places: NDArray[np.int64],
        text_ids: NDArray[np.int64],
        text_places: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The pairs of places whose stretch may hold enough: the texts agree at one of its far ends, too."""
        begins, ends = units.far_ends(places)
        promising = np.zeros(len(places), bool)
        for far in (begins, np.where(ends < 0, -1, np.maximum(ends - GRAM, places))):
            there = np.flatnonzero(far >= 0)
            moved = text_places[there] + far[there] - places[there]
            promising[there] |= self._grams.equal(text_ids[there], moved, grams[far[there]])
        return places[promising], text_ids[promising], text_places[promising]

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
