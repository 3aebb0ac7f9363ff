"""What an author had before it, and what of that a reader has not (or has beside).

A `Trail` describes a whole token sequence, system prompt and wrappers included, as consecutive *chunks* with a digest
each. Chunks end where the tokens say so (after about one pair of tokens in sixteen) and at the edges of messages'
contents, so the same words give the same chunks wherever they stand, in whatever role, wrapped or quoted; only the
chunks in which a wrapping begins or ends differ.

Contexts are compared as sets of chunks: order does not count. Screening needs to know which keys an author had not
seen, and a token that stands elsewhere among the same tokens is a far smaller change than one that is new.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_CHUNK_TOKENS = np.uint64(16)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(32)
_NOWHERE = np.iinfo(np.int64).max


class Trail:
    """The chunks of a token sequence, shared by all segments that stand in it. Immutable; C chunks.

    Attributes:
        starts: int64 [C + 1], where each chunk begins, and the sequence's length.
        digests: uint64 [C].
    """

    def __init__(self, token_ids: Sequence[int], edges: Iterable[int] = ()) -> None:
        ids = np.asarray(token_ids, np.uint64)
        mixed = _mix(ids + np.uint64(1))
        begins = np.zeros(len(ids), bool)
        begins[2:] = _mix(mixed[1:-1] + (mixed[:-2] << np.uint64(1))) % _CHUNK_TOKENS == 0
        at_edges = np.fromiter(edges, np.int64)
        begins[at_edges[at_edges < len(ids)]] = True
        begins[:1] = True
        firsts = np.flatnonzero(begins)
        self.starts = np.append(firsts, len(ids))
        if not len(ids):
            self.digests = np.zeros(0, np.uint64)
            return
        lengths = np.diff(self.starts)
        inside = np.arange(len(ids)) - np.repeat(firsts, lengths)
        weights = np.cumprod(np.full(int(lengths.max()), _MULTIPLIER, np.uint64))
        self.digests = _mix(np.add.reduceat(mixed * weights[inside], firsts) + lengths.astype(np.uint64))

    @property
    def num_tokens(self) -> int:
        """Length of the sequence."""
        return int(self.starts[-1])

    def num_begun(self, position: int) -> int:
        """Chunks that begin before a position."""
        return min(int(self.starts.searchsorted(position)), len(self.digests))

    @cached_property
    def distinct(self) -> "_Distinct":
        """The different chunks of the sequence."""
        digests, ranks, inverse = np.unique(self.digests, return_index=True, return_inverse=True)
        return _Distinct(digests=digests, places=self.starts[:-1][ranks], inverse=inverse)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Distinct:
    """The different chunks of a trail, D of them.

    Attributes:
        digests: uint64 [D], ascending.
        places: int64 [D], where the first chunk with each digest begins.
        inverse: int64 [C], which of them each chunk of the trail is.
    """

    digests: NDArray[np.uint64]
    places: NDArray[np.int64]
    inverse: NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where a segment stood when its KV was computed.

    Attributes:
        trail: its author's whole sequence: for a message the prompt that held it, for a reply prompt and reply.
        position: of the segment's first token in it; the author had seen all before.
    """

    trail: Trail
    position: int

    def fingerprint(self) -> tuple[int, int, int]:
        """Equal for two contexts in which the same chunks were seen, in whatever order and however often."""
        distinct = self.trail.distinct
        seen = distinct.digests[distinct.places < self.position]
        begun = self.trail.starts[np.searchsorted(self.trail.starts, self.position, side="right") - 1]
        return len(seen), int(seen.sum()), self.position - int(begun)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How a reader's context differs from the author's.

    Attributes:
        unseen: half-open ranges of the reader's positions before the span which the author had not seen.
        num_gone: tokens which the author had seen and which do not stand before the span.
    """

    unseen: tuple[tuple[int, int], ...]
    num_gone: int

    @property
    def num_unseen(self) -> int:
        """Tokens in `unseen`."""
        return sum(end - start for start, end in self.unseen)


class Comparison:
    """An author's trail beside a reader's; made once a pair, asked once a span."""

    def __init__(self, author: Trail, reader: Trail) -> None:
        self._author = author
        self._reader = reader
        ours, theirs = reader.distinct, author.distinct
        seen_at = np.full(len(ours.digests), _NOWHERE)
        stands_at = np.full(len(theirs.digests), _NOWHERE)
        if len(stands_at):
            # Both sorted, so this is nearly a merge.
            partner = np.minimum(np.searchsorted(theirs.digests, ours.digests), len(stands_at) - 1)
            shared = theirs.digests[partner] == ours.digests
            seen_at[shared] = theirs.places[partner[shared]]
            stands_at[partner[shared]] = ours.places[shared]
        self._seen_at = seen_at[ours.inverse]
        self._stands_at = stands_at[theirs.inverse]

    def at(self, author_position: int, reader_position: int) -> Change:
        """The change for a token that stood at `author_position` and stands at `reader_position` now."""
        num_before = self._reader.num_begun(reader_position)
        unseen = (self._seen_at[:num_before] >= author_position).nonzero()[0]
        num_known = self._author.num_begun(author_position)
        gone = (self._stands_at[:num_known] >= reader_position).nonzero()[0]
        if not len(gone):
            return Change(unseen=_ranges(self._reader.starts, unseen, reader_position), num_gone=0)
        ends = np.minimum(self._author.starts[gone + 1], author_position)
        return Change(
            unseen=_ranges(self._reader.starts, unseen, reader_position),
            num_gone=int((ends - self._author.starts[gone]).sum()),
        )


def _ranges(starts: NDArray[np.int64], chunks: NDArray[np.int64], limit: int) -> tuple[tuple[int, int], ...]:
    """Positions of the chunks (ascending), neighbours joined, cut at `limit`."""
    if not len(chunks):
        return ()
    breaks = np.flatnonzero(np.diff(chunks) > 1)
    firsts = np.append(chunks[0], chunks[breaks + 1])
    lasts = np.append(chunks[breaks], chunks[-1])
    begins, ends = starts[firsts].tolist(), np.minimum(starts[lasts + 1], limit).tolist()
    return tuple(zip(begins, ends, strict=True))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A cheap 64-bit hash of each value (splitmix64's second half)."""
    mixed = (values ^ (values >> _SHIFT)) * _MIXER
    mixed = (mixed ^ (mixed >> _SHIFT)) * _MULTIPLIER
    return mixed ^ (mixed >> _SHIFT)
