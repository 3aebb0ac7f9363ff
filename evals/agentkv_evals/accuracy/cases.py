"""Items of the worlds as an engine sees them: token ids, each message's author context, and where it stands now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentkv_engine.reuse import PlacedSpan
from agentkv_evals.training.encode import Encoder
from agentkv_evals.training.reuse import pieces
from agentkv_evals.worlds.build import DEPTHS, make_item
from agentkv_evals.worlds.item import Item, QuestionPosition, Topology
from agentkv_evals.worlds.item import Message as ChatMessage


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

    def span(self, handle: int) -> PlacedSpan:
        """The message read from a resident that holds its content."""
        return PlacedSpan(
            start=self.start,
            end=self.start + len(self.content),
            handle=handle,
            unseen=self.unseen,
            num_gone=self.num_gone,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One item, encoded.

    Attributes:
        cell: what kind it is.
        seed: which of its kind.
        prompt: the reader's, with the generation prompt.
        right: the right reply with its end token.
        messages: those that the reader reads, in order.
    """

    cell: Cell
    seed: int
    prompt: tuple[int, ...]
    right: tuple[int, ...]
    messages: tuple[Message, ...]

    @property
    def case_id(self) -> str:
        """Names it in results and requests."""
        return case_id(self.cell, self.seed)


def case_id(cell: Cell, seed: int) -> str:
    """Names an item in results and requests."""
    return f"{cell.family}/{cell.depth}/{cell.topology}/{cell.question}/{seed}"


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
    messages = tuple(_messages(item, encoder))
    return Case(cell=cell, seed=seed, prompt=tuple(prompt), right=tuple(right), messages=messages)


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
    # A wrapped turn lies between these: [header, content, end token, newline].
    headers = [
        encoder.prompt([ChatMessage(role=item.message_role, name=turn.author, content="")])[:-2] for turn in item.turns
    ]
    blocks = [(s - len(h), s + len(c) + 2) for s, c, h in zip(starts, contents, headers, strict=True)]
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
