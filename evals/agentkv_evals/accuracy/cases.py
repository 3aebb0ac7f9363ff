"""Items of the worlds as an engine sees them: token ids, each message's author context, and where it stands now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from agentkv_engine.reuse import PlacedSpan, Resident
from agentkv_evals.training.encode import Encoder
from agentkv_evals.training.reuse import pieces
from agentkv_evals.worlds.build import DEPTHS, make_item
from agentkv_evals.worlds.item import Item, QuestionPosition, Topology
from agentkv_evals.worlds.item import Message as ChatMessage

_CLOSING = 2
"""Tokens behind a message's content: its end token and a newline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Items that differ in their seed only.

    Attributes:
        family, depth, topology, question: as of `Item`.
    """

    family: str
    depth: int
    topology: Topology
    question: QuestionPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message in its reader's prompt, and the context in which its author wrote it.

    Attributes:
        context: the author's prompt, up to the message's first token.
        content: the message's tokens.
        start: the reader's position of its first token.
        unseen: half-open ranges of the reader's positions before `start` which the author had not seen.
        num_gone: tokens of `context` which do not stand before the message in the reader's prompt.
    """

    context: tuple[int, ...]
    content: tuple[int, ...]
    start: int
    unseen: tuple[tuple[int, int], ...]
    num_gone: int

    def span(self, resident: Resident) -> PlacedSpan:
        """The message read from the resident that holds its content."""
        return PlacedSpan(
            start=self.start,
            end=self.start + len(self.content),
            handle=resident.handle,
            unseen=self.unseen,
            num_gone=self.num_gone,
            hops=resident.hops,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One item, encoded.

    Attributes:
        cell: what kind it is.
        seed: which of its kind.
        prompt: the reader's, with the generation prompt.
        right: the right reply with its end token.
        messages: those that the reader reads, in order; behind the first hop the last one is the reply before.
        asked: the first hop's prompt.
        head: tokens of it up to where a reply would stand that is passed on: behind the messages.
        wrapping: what stands before and behind the content of such a reply.
        hop: 1, or one more than the hop whose reply is read.
    """

    cell: Cell
    seed: int
    prompt: tuple[int, ...]
    right: tuple[int, ...]
    messages: tuple[Message, ...]
    asked: tuple[int, ...]
    head: int
    wrapping: tuple[tuple[int, ...], tuple[int, ...]]
    hop: int = 1

    @property
    def case_id(self) -> str:
        """Names it in results and requests."""
        return case_id(self.cell, self.seed, self.hop)

    @property
    def item_id(self) -> str:
        """Names the item, whatever the hop."""
        return case_id(self.cell, self.seed, 0)

    @property
    def authored(self) -> tuple[Message, ...]:
        """The messages of the item; not a reply that was passed on."""
        return self.messages if self.hop == 1 else self.messages[:-1]

    def passed_on(self, reply: tuple[int, ...]) -> Case:
        """The next hop: the same is asked of an agent that also reads this reply (with its end token), behind the rest.

        The reply's author had the same instructions and messages; what followed them in its prompt is gone.
        """
        before, behind = self.wrapping
        start = self.head + len(before)
        message = Message(
            context=self.prompt,
            content=reply[:-1],
            start=start,
            unseen=((self.head, start),),
            num_gone=len(self.prompt) - self.head,
        )
        return replace(
            self,
            prompt=(*self.asked[: self.head], *before, *message.content, *behind, *self.asked[self.head :]),
            messages=(*self.authored, message),
            hop=self.hop + 1,
        )


def case_id(cell: Cell, seed: int, hop: int = 1) -> str:
    """Names an item, at a hop, in results and requests."""
    return f"{cell.family}/{cell.depth}/{cell.topology}/{cell.question}/{seed}/{hop}"


def cells(
    families: Sequence[str],
    depths: Sequence[int],
    topologies: Sequence[Topology],
    questions: Sequence[QuestionPosition],
) -> list[Cell]:
    """Every combination that exists."""
    return [
        Cell(family=family, depth=depth, topology=topology, question=question)
        for question in questions
        for topology in topologies
        for family in families
        for depth in DEPTHS[family]
        if depth in depths
    ]


def make_case(cell: Cell, seed: int, encoder: Encoder) -> Case:
    """The held-out item of a cell and a seed."""
    item = make_item(
        family=cell.family,
        depth=cell.depth,
        seed=seed,
        topology=cell.topology,
        question_position=cell.question,
    )
    prompt, right = encoder.item(item)
    tail = [] if item.instruction is None else encoder.prompt([ChatMessage(role="user", content=item.instruction)])
    wrapped = encoder.prompt([ChatMessage(role=item.message_role, name=item.reader, content="")])
    return Case(
        cell=cell,
        seed=seed,
        prompt=tuple(prompt),
        right=tuple(right),
        messages=tuple(_messages(item, encoder)),
        asked=tuple(prompt),
        head=len(prompt) - len(tail) - len(encoder.generation_prompt()),
        wrapping=(tuple(wrapped[:-_CLOSING]), tuple(wrapped[-_CLOSING:])),
    )


def _messages(item: Item, encoder: Encoder) -> Iterator[Message]:
    """The messages, placed.

    An author has seen the turns that its topology shows it, wrapped as the reader sees them; its instructions, its
    document and the reader's own text are the difference.
    """
    starts: list[int] = []
    contents: list[tuple[int, ...]] = []
    position = 0
    for piece in pieces(item, encoder):
        if piece.turn is not None:
            starts.append(position)
            contents.append(tuple(piece.ids))
        position += len(piece.ids)
    generation = encoder.generation_prompt()
    headers = [
        encoder.prompt([ChatMessage(role=item.message_role, name=turn.author, content="")])[:-_CLOSING]
        for turn in item.turns
    ]
    blocks = [(s - len(h), s + len(c) + _CLOSING) for s, c, h in zip(starts, contents, headers, strict=True)]
    for index, turn in enumerate(item.turns):
        context = (*encoder.prompt(item.author_messages(index)), *generation)
        seen = [blocks[other] for other in turn.sees]
        yield Message(
            context=context,
            content=contents[index],
            start=starts[index],
            unseen=_gaps(seen, starts[index]),
            num_gone=len(context) - sum(end - start for start, end in seen),
        )


def _gaps(seen: Sequence[tuple[int, int]], limit: int) -> tuple[tuple[int, int], ...]:
    """What lies before `limit` outside these sorted ranges."""
    edges = [0, *(edge for pair in seen for edge in pair), limit]
    return tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)
