"""The task `ruler`: generated tasks of any length in plain text, after RULER (arXiv 2404.06654), over several agents.

Every agent's message is a stretch of plain sentences in which something is hidden:

* `needle`: one number for a word; the question names the word.
* `multikey`: a number for a word in every message and several of them; the question names one word.
* `tracking`: variables that get their value from one another across messages; the question asks for all of one value.
* `words`: words that come often among words that come once; the question asks for the three that come most often.

A reply is right if it holds every string that is asked for. Nothing is needed but a tokenizer with a chat template.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from agentkv.segment.context import Comparison, Trail
from agentkv.tokenization import ChatTokenizer, Prompt
from agentkv_evals.accuracy.cases import Author, Case, Cell, Message
from agentkv_evals.accuracy.tasks.chats import chat, numbered, trail_of
from agentkv_evals.accuracy.tasks.ruler_texts import TEXTS, Asked
from agentkv_evals.accuracy.tasks.task import Replies, Task

FAMILIES = tuple(TEXTS)
TOPOLOGIES = ("parallel", "chain")
LENGTH, REPLY_TOKENS, AGENTS = 1024, 48, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerSource:
    """See `TaskSource`.

    Attributes:
        cells: kinds of items.
        num_items: of each cell.
        length: tokens of all messages, about.
        reply_tokens: most tokens of a reply.
        first_seed: of a cell's items.
    """

    cells: Sequence[Cell]
    num_items: int
    length: int
    reply_tokens: int
    first_seed: int

    def open(self, model: Path) -> Task:
        """See `TaskSource.open`."""
        return Ruler(self, ChatTokenizer.from_directory(model))


class Ruler:
    """See `Task`."""

    name = "ruler"
    generates = True

    def __init__(self, source: RulerSource, tokenizer: ChatTokenizer) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._asked = lru_cache(maxsize=64)(self._make)
        self.version = f"ruler-1/{source.length}/{source.reply_tokens}"

    @property
    def items(self) -> Sequence[tuple[Cell, int]]:
        """See `Task.items`."""
        return numbered(self._source.cells, self._source.num_items, self._source.first_seed)

    def case(self, cell: Cell, seed: int, replies: Replies = ()) -> Case | None:
        """See `Task.case`: one reader."""
        if replies:
            return None
        asked = self._asked(cell, seed)
        system = "You read what several agents report, and answer from it. Answer briefly."
        first = cell.question == "first"
        prompt = self._tokenizer.prompt(
            chat(
                ("system", f"{system} {asked.question}" if first else system),
                *(("user", text, f"agent_{n}") for n, text in enumerate(asked.texts, start=1)),
                *(() if first else (("user", asked.question),)),
            )
        )
        trail = trail_of(prompt)
        authors: list[Author] = []
        messages: list[Message] = []
        for index, message in enumerate(prompt.messages[1 : 1 + len(asked.texts)]):
            content = prompt.token_ids[message.start : message.end]
            context = self._context(asked, index, cell.topology)
            author = Author(source=f"author {index}", context=context.token_ids, content=content)
            authors.append(author)
            messages.append(_read(author, context, message.start, trail))
        return Case(
            cell=cell,
            seed=seed,
            part=cell.family,
            prompt=prompt.token_ids,
            messages=tuple(messages),
            authors=tuple(authors),
            max_tokens=self._source.reply_tokens,
            stop_ids=self._tokenizer.stop_token_ids,
        )

    def is_right(self, case: Case, reply: tuple[int, ...]) -> bool | None:
        """See `Task.is_right`: every string that is asked for stands in the reply."""
        text = self._tokenizer.decode(reply)
        return all(answer in text for answer in self._asked(case.cell, case.seed).answers)

    def same_choice(self, *_case_and_replies: object) -> bool | None:
        """See `Task.same_choice`: nothing is chosen."""
        return None

    def _make(self, cell: Cell, seed: int) -> Asked:
        draws = random.Random(f"{self.version}/{cell}/{seed}")
        return TEXTS[cell.family](draws, AGENTS, self._source.length // AGENTS, self._count)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _context(self, asked: Asked, index: int, topology: str) -> Prompt:
        """What an author had before it: its own instructions, and in a chain what the others had written."""
        seen = asked.texts[:index] if topology == "chain" else ()
        system = f"You are agent {index + 1}. Report what you have found, sentence by sentence."
        messages = chat(
            ("system", system),
            *(("user", text, f"agent_{n}") for n, text in enumerate(seen, start=1)),
            ("user", f"Write report {index + 1}."),
        )
        return self._tokenizer.prompt(messages)


def ruler_cells(families: Sequence[str], topologies: Sequence[str], questions: Sequence[str]) -> list[Cell]:
    """Every combination."""
    return [
        Cell(family=family, depth=AGENTS - 1 if family == "tracking" else 0, topology=topology, question=question)
        for question in questions
        for topology in topologies
        for family in families
    ]


def _read(author: Author, context: Prompt, start: int, trail: Trail) -> Message:
    position = len(author.context)
    edges = [edge for message in context.messages for edge in (message.start, message.end)]
    written = Trail((*author.context, *author.content), [*edges, position])
    change = Comparison(written, trail).at(position, start)
    return Message(
        source=author.source,
        content=author.content,
        start=start,
        unseen=change.unseen,
        num_gone=change.num_gone,
    )
