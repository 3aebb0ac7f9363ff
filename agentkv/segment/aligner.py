"""From a stretch of equal text to runs of equal tokens.

Where a text is wrapped, quoted or given another role, its tokens stay, but for one or two at the edges that now hold a
neighbouring character. So tokens are matched by their places in the text, and every run of matching ones is a piece
that can be read; what lies between is left to be computed.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids with the characters behind them; int32 [T] each, `starts` and `ends` never decreasing."""

    token_ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Tokens [start, end) of the reader are tokens [kept_start, ...) of the kept text."""

    start: int
    end: int
    kept_start: int

    @property
    def num_tokens(self) -> int:
        """Tokens in the run."""
        return self.end - self.start


def align(
    reader: Tokens, kept: Tokens, *, start: int, end: int, kept_start: int, min_tokens: int = 16
) -> tuple[Run, ...]:
    """Runs of at least `min_tokens` equal tokens at equal places.

    Args:
        reader: tokens of the message that is read.
        kept: tokens of the kept text.
        start, end: half-open stretch of the reader's characters that equals the kept text from `kept_start` on.
        kept_start: character of the kept text where the stretch begins.
        min_tokens: shorter runs are left out.
    """
    if start == kept_start == 0 and _same(reader, kept, end):
        return (Run(start=0, end=len(kept.token_ids), kept_start=0),) if len(kept.token_ids) >= min_tokens else ()
    first = int(np.searchsorted(reader.starts, start, side="left"))
    last = int(np.searchsorted(reader.ends, end, side="right"))
    if last - first < min_tokens or not len(kept.token_ids):
        return ()
    places, place_ends = reader.starts[first:last], reader.ends[first:last]
    shift = np.int32(kept_start - start)
    # Several tokens may share one character; they correspond in their order.
    rank = np.arange(last - first) - np.searchsorted(places, places, side="left")
    partner = np.searchsorted(kept.starts, places + shift, side="left") + rank
    inside = partner < len(kept.token_ids)
    partner = np.where(inside, partner, 0)
    equal = (
        inside
        & (kept.token_ids[partner] == reader.token_ids[first:last])
        & (kept.starts[partner] == places + shift)
        & (kept.ends[partner] == place_ends + shift)
    )
    return tuple(
        Run(start=first + a, end=first + b, kept_start=int(partner[a]))
        for a, b in _stretches(equal, partner)
        if b - a >= min_tokens
    )


def _same(reader: Tokens, kept: Tokens, end: int) -> bool:
    """Whether the two are the same throughout, and all of it lies before `end`: the common case, and a cheap test."""
    return (
        len(reader.token_ids) == len(kept.token_ids)
        and bool((reader.token_ids == kept.token_ids).all())
        and bool((reader.starts == kept.starts).all())
        and bool((reader.ends == kept.ends).all())
        and (not len(reader.ends) or bool(reader.ends[-1] <= end))
    )


def _stretches(equal: NDArray[np.bool_], partner: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Half-open stretches in which all tokens are equal and their partners follow one another."""
    breaks = np.ones(len(equal) + 1, bool)
    breaks[1:-1] = (equal[1:] != equal[:-1]) | (equal[1:] & (partner[1:] != partner[:-1] + 1))
    edges = np.flatnonzero(breaks)
    return [(int(a), int(b)) for a, b in pairwise(edges) if equal[a]]
