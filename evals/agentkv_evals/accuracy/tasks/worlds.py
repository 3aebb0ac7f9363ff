"""The task `worlds`: reading tasks in the embedded model's own English, whose every right reply is known word for word.

Each message's author read its own instructions and document, and what the topology shows it. A reply can be passed on:
the same is then asked of an agent that reads it too (a hop).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer

from agentkv.embedded import model_directory
from agentkv.errors import ConfigError
from agentkv_evals.accuracy.cases import Author, Case, Cell, Message, reply_source
from agentkv_evals.accuracy.tasks.task import Replies, Task
from agentkv_evals.training.encode import END_ID, Encoder
from agentkv_evals.training.reuse import pieces
from agentkv_evals.worlds.build import DEPTHS, make_item
from agentkv_evals.worlds.item import Item, QuestionPosition, Topology
from agentkv_evals.worlds.item import Message as ChatMessage
from agentkv_evals.worlds.split import VERSION

TOPOLOGIES: tuple[Topology, ...] = ("parallel", "chain", "debate")
QUESTIONS: tuple[QuestionPosition, ...] = ("last", "first")
FIRST_SEED = 200_000

_CLOSING = 2
"""Tokens behind a message's content: its end token and a newline."""
_SLACK = 16
"""Tokens that a wrong reply may be longer than the right one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldsSource:
    """See `TaskSource`.

    Attributes:
        cells: kinds of items.
        num_items: of each cell.
        hops: how often a reply is passed on, the first reader counted.
        length: about so many tokens have the messages of an item; 0 leaves them as they are, without padding.
        first_seed: of a cell's items; a claim needs seeds that nobody looked at.
    """

    cells: Sequence[Cell]
    num_items: int
    hops: int
    length: int
    first_seed: int

    def open(self, model: Path) -> Task:
        """See `TaskSource.open`: the model must have the worlds' own tokenizer."""
        path = model / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{model} holds no tokenizer.json: give a Hugging Face model directory")
        tokenizer = Tokenizer.from_file(str(path))
        ours = Tokenizer.from_file(str(model_directory() / "tokenizer.json"))
        if tokenizer.get_vocab() != ours.get_vocab():
            raise ConfigError(
                f"{model} has another tokenizer than the repository's model, for which the task `worlds` is written: "
                "give --task ruler, gsm8k or traces"
            )
        return Worlds(self, tokenizer)


class Worlds:
    """See `Task`."""

    name = "worlds"
    generates = False

    def __init__(self, source: WorldsSource, tokenizer: Tokenizer) -> None:
        self._source = source
        self.version = f"{VERSION}, {source.length} tokens" if source.length else VERSION
        self._encoder = Encoder(tokenizer)
        self._digits = frozenset(self._encoder.encode(digit)[0] for digit in "0123456789")
        self._item = lru_cache(maxsize=256)(_held_out)

    @property
    def items(self) -> Sequence[tuple[Cell, int]]:
        """See `Task.items`."""
        first = self._source.first_seed
        return [(cell, first + n) for cell in self._source.cells for n in range(self._source.num_items)]

    def case(self, cell: Cell, seed: int, replies: Replies = ()) -> Case | None:
        """See `Task.case`: the reader, or one more reader, who also reads the last reply.

        A reply's author had the same instructions and messages; what followed them in its prompt is gone.
        """
        # A reply of an end token only leaves nothing to pass on.
        if len(replies) >= self._source.hops or any(len(reply) < 2 for reply in replies):
            return None
        item = self._item(cell, seed, self._source.length)
        asked, right = (tuple(ids) for ids in self._encoder.item(item))
        authors, messages = (tuple(parts) for parts in zip(*_authored(item, self._encoder), strict=True))
        prompt = asked
        for step, reply in enumerate(replies, start=1):
            head = self._head(item, asked)
            before, behind = self._wrapping(item)
            start, content = head + len(before), reply[:-1]
            passed_on = Message(
                source=reply_source(step),
                content=content,
                start=start,
                unseen=((head, start),),
                num_gone=len(prompt) - head,
            )
            prompt = (*asked[:head], *before, *content, *behind, *asked[head:])
            messages = (*messages[: len(authors)], passed_on)
        return Case(
            cell=cell,
            seed=seed,
            step=len(replies) + 1,
            part=cell.family,
            hop=len(replies) + 1,
            prompt=prompt,
            messages=messages,
            authors=authors,
            right=right,
            max_tokens=len(right) + _SLACK,
            stop_ids=frozenset({END_ID}),
        )

    def is_right(self, case: Case, reply: tuple[int, ...]) -> bool | None:
        """See `Task.is_right`: word for word."""
        return reply == case.right

    def same_choice(self, case: Case, reply: tuple[int, ...], other: tuple[int, ...]) -> bool | None:
        """See `Task.same_choice`: a judge names a candidate by its number, the last one in its reply."""
        if case.cell.family != "judge":
            return None
        chosen = max((n + 1 for n, token in enumerate(reply) if token in self._digits), default=len(reply))
        return other[:chosen] == reply[:chosen]

    def _head(self, item: Item, asked: Sequence[int]) -> int:
        """Tokens of the prompt up to where a reply that is passed on stands: behind the messages."""
        tail = [] if item.instruction is None else [ChatMessage(role="user", content=item.instruction)]
        return len(asked) - len(self._encoder.prompt(tail)) - len(self._encoder.generation_prompt())

    def _wrapping(self, item: Item) -> tuple[list[int], list[int]]:
        """What stands before and behind the content of a reply that is passed on."""
        wrapped = self._encoder.prompt([ChatMessage(role=item.message_role, name=item.reader, content="")])
        return wrapped[:-_CLOSING], wrapped[-_CLOSING:]


def world_cells(
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


def _held_out(cell: Cell, seed: int, length: int) -> Item:
    return make_item(
        family=cell.family,
        depth=cell.depth,
        seed=seed,
        topology=cast(Topology, cell.topology),
        question_position=cast(QuestionPosition, cell.question),
        length=length,
    )


def _authored(item: Item, encoder: Encoder) -> Iterator[tuple[Author, Message]]:
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
        source = f"author {index}"
        message = Message(
            source=source,
            content=contents[index],
            start=starts[index],
            unseen=_gaps(seen, starts[index]),
            num_gone=len(context) - sum(end - start for start, end in seen),
        )
        yield Author(source=source, context=context, content=contents[index]), message


def _gaps(seen: Sequence[tuple[int, int]], limit: int) -> tuple[tuple[int, int], ...]:
    """What lies before `limit` outside these sorted ranges."""
    edges = [0, *(edge for pair in seen for edge in pair), limit]
    return tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)
