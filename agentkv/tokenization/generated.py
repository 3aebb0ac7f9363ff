"""Which generated tokens stand behind a returned text.

The server cuts stop strings and end-of-turn tokens, and some clients never see a `<think>` block: the returned text is
a stretch of what the tokens say. Tokens wholly inside the stretch are kept as they were generated; where a cut falls
inside a token, only the text between the cut and the next whole token is tokenised again.
"""

from collections.abc import Callable, Sequence

import numpy as np

from agentkv.tokenization.prompt import GeneratedText
from agentkv.tokenization.token_bytes import TokenBytes


def locate_generated(
    text: str, token_ids: Sequence[int], token_bytes: TokenBytes, encode: Callable[[str], Sequence[int]]
) -> GeneratedText | None:
    """The tokens behind `text`, or None when it is empty or not what the tokens say.

    Args:
        text: the returned text.
        token_ids: all generated ids, special ones included.
        token_bytes: the tokenizer's bytes.
        encode: tokenises the remainders at the cuts.
    """
    pieces = [b"" if token_bytes.is_special(i) else token_bytes[i] for i in token_ids]
    joined = b"".join(pieces)
    wanted = text.partition("\ufffd")[0].encode()  # what follows a broken character is tokenised again
    begin = (
        0
        if joined.startswith(wanted)
        else len(joined) - len(wanted)
        if joined.endswith(wanted)
        else joined.find(wanted)
    )
    if not text or begin < 0:
        return None
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(piece) for piece in pieces])]) - begin
    first = int(np.searchsorted(bounds, 0, side="right"))
    first -= first > 0 and bool(bounds[first - 1] == 0)
    last = int(np.searchsorted(bounds, len(wanted), side="left"))
    last = max(last - bool(bounds[last] > len(wanted)), first)
    while first < last and not _is_boundary(wanted, int(bounds[first])):
        first += 1
    while last > first and not _is_boundary(wanted, int(bounds[last])):
        last -= 1
    if first == last:  # no whole token inside: all is tokenised again
        ids, head, first, last = tuple(encode(text)), 0, 0, 0
    else:
        before, behind = wanted[: bounds[first]].decode(), text.encode()[bounds[last] :].decode()
        front = tuple(encode(before)) if before else ()
        back = tuple(encode(behind)) if behind else ()
        ids, head = (*front, *token_ids[first:last], *back), len(front)
    offsets = token_bytes.offsets(ids, text)
    if offsets is None:
        return None
    return GeneratedText(
        text=text,
        token_ids=ids,
        starts=offsets[0],
        ends=offsets[1],
        first=first,
        last=last,
        before=tuple(token_ids[:first]),
        head=head,
    )


def _is_boundary(data: bytes, position: int) -> bool:
    """Whether a character begins at this byte, or the data ends there."""
    return position >= len(data) or data[position] & 0xC0 != 0x80
