"""Items as an engine sees them: token ids, whose KV stands where, and what is kept for those who read next."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentkv_engine.reuse import PlacedSpan, Resident


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Items that differ in their seed only.

    Attributes:
        family: what is asked for.
        depth: references between question and answer.
        topology: what the authors of messages had seen of each other.
        question: where the question stands, `last` or `first`.
    """

    family: str
    depth: int = 0
    topology: str = "parallel"
    question: str = "last"

    def __str__(self) -> str:
        return f"{self.family}/{self.depth}/{self.topology}/{self.question}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """A message and the prompt behind which it was written, alone: full prefill, the same KV for all arms.

    Attributes:
        source: names the kept KV.
        context: the author's prompt, up to the message's first token.
        content: the message's tokens.
    """

    source: str
    context: tuple[int, ...]
    content: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Prompt positions [start, end) whose KV is kept under a name, an arm's own for later readers of the same arm."""

    source: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A stretch of its reader's prompt whose KV is read from elsewhere.

    Attributes:
        source: names the kept KV.
        content: the tokens.
        start: the reader's position of the first one.
        first: index of that token in what is kept.
        unseen: half-open ranges of the reader's positions before `start` which the author had not seen.
        num_gone: tokens that the author had seen and which do not stand before the message in the reader's prompt.
    """

    source: str
    content: tuple[int, ...]
    start: int
    first: int = 0
    unseen: tuple[tuple[int, int], ...]
    num_gone: int

    def span(self, resident: Resident) -> PlacedSpan:
        """The message read from the resident that holds its content."""
        return PlacedSpan(
            start=self.start,
            end=self.start + len(self.content),
            handle=resident.handle,
            resident_start=self.first,
            unseen=self.unseen,
            num_gone=self.num_gone,
            hops=resident.hops,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One prompt of an item: its only one, or one of several that read each other's replies.

    Attributes:
        cell, seed: the item.
        step: which of the item's prompts, from 1.
        part: what the prompt's figures are filed under: the cell's family, or the agent that is asked.
        hop: how many replies stand between this one and the first, at most, itself counted.
        prompt: with the generation prompt.
        messages: those that are read from kept KV, in order.
        authors: those whose KV must be there first.
        kept: what else of the prompt is kept; the reply always is, as `reply_source(step)`.
        reply: what the agent said in truth, forced on everybody; None lets full prefill decode.
        right: the only right reply, where there is one.
        max_tokens: most tokens of a reply that is decoded.
        stop_ids: tokens that end it.
    """

    cell: Cell
    seed: int
    step: int = 1
    part: str
    hop: int = 1
    prompt: tuple[int, ...]
    messages: tuple[Message, ...]
    authors: tuple[Author, ...] = ()
    kept: tuple[Kept, ...] = ()
    reply: tuple[int, ...] | None = None
    right: tuple[int, ...] | None = None
    max_tokens: int
    stop_ids: frozenset[int] = field(default_factory=frozenset)

    @property
    def item_id(self) -> str:
        """Names the item, whatever the step."""
        return item_id(self.cell, self.seed)

    @property
    def case_id(self) -> str:
        """Names this prompt of the item, in results and requests."""
        return f"{self.item_id}/{self.step}"

    @property
    def num_reused(self) -> int:
        """Tokens that are read from kept KV."""
        return sum(len(message.content) for message in self.messages)


def item_id(cell: Cell, seed: int) -> str:
    """Names an item in results and requests."""
    return f"{cell}/{seed}"


def reply_source(step: int) -> str:
    """Names the KV of the reply of a step; the last token of a reply has none."""
    return f"reply {step}"
