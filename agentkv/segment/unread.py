"""Which of a prompt's kept texts the author of another one had not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from agentkv_engine.reuse import PlacedSpan

Ranges = Sequence[tuple[int, int]]


def with_unread(spans: Sequence[PlacedSpan]) -> tuple[PlacedSpan, ...]:
    """A prompt's spans (sorted, disjoint), each with `unread`: the parts of the others that its author had not seen.

    Said here, where all texts of the prompt are known, and not found out from what the engine reads in the end: a plan
    must not change with what the prefix cache covers.
    """
    texts = [(span.start, span.end) for span in spans]
    return tuple(replace(span, unread=tuple(_common(span.unseen, texts))) for span in spans)


def _common(ranges: Ranges, others: Ranges) -> Iterator[tuple[int, int]]:
    """What two lists of sorted, disjoint half-open ranges have in common."""
    mine, theirs = iter(ranges), iter(others)
    one, other = next(mine, None), next(theirs, None)
    while one is not None and other is not None:
        start, end = max(one[0], other[0]), min(one[1], other[1])
        if start < end:
            yield start, end
        if one[1] < other[1]:
            one = next(mine, None)
        else:
            other = next(theirs, None)
