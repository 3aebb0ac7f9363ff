"""From a rendered chat to a prompt: cut it into parts, tokenise the parts, find each message's tokens.

A rendered text is a row of parts: special tokens that the template wrote (fences), generated texts whose tokens are
known (splices), and plain text between them.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from agentkv.api import ChatMessage
from agentkv.tokenization.fences import Escape, Fences
from agentkv.tokenization.pieces import Piece
from agentkv.tokenization.prompt import Prompt, PromptMessage, Splice
from agentkv.tokenization.template import Rendered

_NOWHERE = (0, 0)
_TAIL = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A rendered chat with the messages' own special-token text restored.

    Attributes:
        text: the whole of it.
        contents: half-open character span of each message's content, (0, 0) where it could not be located.
        located: whether each could.
        fences: the template's special tokens: start, end and id, in order. Empty when not `is_cut`.
        is_cut: whether the text is to be cut at the template's special tokens.
    """

    text: str
    contents: tuple[tuple[int, int], ...]
    located: tuple[bool, ...]
    fences: tuple[tuple[int, int, int], ...]
    is_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Characters [start, end) of the text; `piece` is known for fences and splices, else the text is tokenised."""

    start: int
    end: int
    piece: Piece | None = None
    is_splice: bool = False


def lay_out(rendered: Rendered, escape: Escape, fences: Fences | None) -> Layout:
    """Restore what was escaped and find the fences; `fences` is None for a text that is tokenised as a whole."""
    originals = dict(escape.texts)
    places = [i for i, c in enumerate(rendered.text) if c in originals] if originals else []
    grown = list(accumulate((len(originals[rendered.text[i]]) - 1 for i in places), initial=0))

    def moved(position: int) -> int:
        return position + grown[bisect_left(places, position)]

    found: list[tuple[int, int, int]] = []
    position = 0
    for rank, part in enumerate(fences.split(rendered.text) if fences else ()):
        if rank % 2 and fences:
            found.append((moved(position), moved(position + len(part)), fences.ids[part]))
        position += len(part)
    return Layout(
        text=escape.restore(rendered.text),
        contents=tuple((moved(s[0]), moved(s[1])) if s else _NOWHERE for s in rendered.contents),
        located=tuple(span is not None for span in rendered.contents),
        fences=tuple(found),
        is_cut=fences is not None,
    )


def assemble(
    layout: Layout,
    messages: Sequence[ChatMessage],
    splices: Sequence[Sequence[Splice]] | None,
    encode: Callable[[Sequence[str]], Mapping[str, Piece]],
) -> Prompt:
    """Tokenise the parts and put them together.

    Args:
        layout: the rendered chat.
        messages: the request's messages, one for each of the layout's contents.
        splices: generated stretches of each content, in its own characters.
        encode: gives the piece of each text.
    """
    parts = _parts(layout, splices)
    pieces = encode([layout.text[p.start : p.end] for p in parts if p.piece is None])
    found = [p.piece or pieces[layout.text[p.start : p.end]] for p in parts]
    none = [np.zeros(0, np.int32)]
    ids = np.concatenate(none + [piece.token_ids for piece in found])
    origins = np.repeat(np.asarray([p.start for p in parts], np.int32), [len(piece.token_ids) for piece in found])
    starts = np.concatenate(none + [piece.starts for piece in found]) + origins
    ends = np.concatenate(none + [piece.ends for piece in found]) + origins
    return Prompt(
        token_ids=tuple(ids.tolist()),
        messages=_messages(layout, messages, starts, ends),
        num_spliced=sum(p.piece.token_ids.size for p in parts if p.is_splice and p.piece),
        tail=layout.text[-_TAIL:],
    )


def _parts(layout: Layout, splices: Sequence[Sequence[Splice]] | None) -> list[_Part]:
    lengths = {token: b - a for a, b, token in layout.fences}
    kinds = {token: _fence(token, length) for token, length in lengths.items()}
    known = [_Part(start=a, end=b, piece=kinds[token]) for a, b, token in layout.fences]
    for (origin, _), found in zip(layout.contents, splices or (), strict=False):
        for splice in found:
            generated = splice.generated
            ids = np.asarray(generated.token_ids, np.int32)
            piece = Piece(token_ids=ids, starts=generated.starts, ends=generated.ends)
            known.append(_Part(start=origin + splice.start, end=origin + splice.end, piece=piece, is_splice=True))
    known.sort(key=lambda part: part.start)
    parts: list[_Part] = []
    position = 0
    for part in known:
        if part.start < position:  # a splice over a fence: the template put a special token into the content
            continue
        if part.start > position:
            parts.append(_Part(start=position, end=part.start))
        parts.append(part)
        position = part.end
    if position < len(layout.text):
        parts.append(_Part(start=position, end=len(layout.text)))
    return parts


def _fence(token_id: int, length: int) -> Piece:
    """The piece of one special token."""
    return Piece(
        token_ids=np.asarray([token_id], np.int32),
        starts=np.zeros(1, np.int32),
        ends=np.asarray([length], np.int32),
    )


def _messages(
    layout: Layout, messages: Sequence[ChatMessage], starts: NDArray[np.int32], ends: NDArray[np.int32]
) -> tuple[PromptMessage, ...]:
    spans = np.asarray(layout.contents, np.int32).reshape(-1, 2)
    firsts = np.searchsorted(starts, spans[:, 0], side="left")
    lasts = np.maximum(np.searchsorted(ends, spans[:, 1], side="right"), firsts)
    places = zip(messages, layout.contents, layout.located, firsts.tolist(), lasts.tolist(), strict=True)
    return tuple(
        PromptMessage(
            index=index,
            role=message.role,
            name=message.name,
            text=layout.text[begin:end],
            start=first,
            end=last if end > begin else first,
            starts=starts[first:last] - begin,
            ends=ends[first:last] - begin,
            located=located or not message.content.strip(),
        )
        for index, (message, (begin, end), located, first, last) in enumerate(places)
    )
