"""A tokenised chat: its token ids, and which of them are which message's content."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptMessage:
    """One message's content in a prompt; T = end - start tokens lie wholly inside it.

    Attributes:
        index: place among the request's messages.
        role, name: as the request had them.
        text: the content as rendered (templates may trim it).
        start, end: half-open span of prompt positions whose tokens lie wholly inside the content.
        starts, ends: int32 [T], characters [starts[t], ends[t]) of `text` behind token start + t.
        located: False where the template left the content out or changed it beyond recognition; then `text` is empty
            and so is the span.
    """

    index: int
    role: str
    name: str | None
    text: str
    start: int
    end: int
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    located: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens wholly inside the content."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """A tokenised chat. Two prompts are equal if they are the same object: what is known of one is kept by it.

    Attributes:
        token_ids: what the engine is asked with.
        messages: one for each message of the request, in order.
        num_spliced: tokens that came from the memory of generated text instead of the tokenizer.
        tail: the last characters of the text, which stand before the reply.
    """

    token_ids: tuple[int, ...]
    messages: tuple[PromptMessage, ...]
    num_spliced: int = 0
    tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GeneratedText:
    """A returned text and the generated tokens behind it; T tokens.

    Attributes:
        text: what the client received.
        token_ids: tokens whose bytes are the text's: generated ones, and where the server cut inside a token, a few
            re-tokenised at the cut.
        starts, ends: int32 [T], characters of `text` behind each token.
        first, last: half-open range of the *generated* ids that are in `token_ids` as they were generated.
        before: generated ids before `first`, which the client never saw.
        head: tokens of `token_ids` before the first of these (0 unless the beginning was cut inside a token).
    """

    text: str
    token_ids: tuple[int, ...]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    first: int
    last: int
    before: tuple[int, ...] = ()
    head: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Splice:
    """Characters [start, end) of a message are a generated text, and these were its tokens."""

    start: int
    end: int
    generated: GeneratedText


class Splicer(Protocol):
    """Knows which texts were generated."""

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[Splice]]:
        """For each text, its generated stretches: sorted, disjoint."""
        ...
