"""From dialogues to token rows: the chat template by hand, with a loss weight for every token, quickly.

The worlds are plain ASCII, so a small regular expression finds the tokenizer's own word pieces and a dictionary
remembers their ids; a test holds it to the tokenizer and to the chat template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer

from agentkv_evals.worlds.item import Item, Message
from agentkv_evals.worlds.lessons import Lesson

PAD_ID, START_ID, END_ID = 0, 1, 2
IGNORED, CONTEXT, REPLY, DECISIVE = 0, 1, 2, 3
WEIGHTS = (0.0, 0.2, 1.0, 3.0)
"""Loss weight of each class of token: padding, what is read, what is written, the words that decide."""

_PIECE = re.compile(
    r"[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.ASCII,
)
_MARK = re.compile(r"[{}]")


class Encoder:
    """Encodes world text into ids; `encode` equals the tokenizer's result on ASCII without apostrophes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            found = self._known.get(piece)
            if found is None:
                found = self._known[piece] = self._tokenizer.encode(piece, add_special_tokens=False).ids
            ids += found
        return ids

    def prompt(self, messages: Iterable[Message]) -> list[int]:
        """Messages in the chat template, without the generation prompt."""
        ids: list[int] = []
        for message in messages:
            name = f" name={message.name}" if message.name else ""
            ids += [START_ID, *self.encode(f"{message.role}{name}\n"), *self.encode(message.content), END_ID]
            ids += self.encode("\n")
        return ids

    def generation_prompt(self) -> list[int]:
        """What makes the assistant speak."""
        return [START_ID, *self.encode("assistant\n")]

    def reply(self, marked: str) -> tuple[list[int], list[int]]:
        """Ids and weight classes of a reply whose decisive words stand in braces, with its end token."""
        ids, classes, kind = [], [], REPLY
        for part in _MARK.split(marked):
            piece = self.encode(part)
            ids += piece
            classes += [kind] * len(piece)
            kind = DECISIVE if kind == REPLY else REPLY
        return [*ids, END_ID], [*classes, REPLY]

    def lesson(self, lesson: Lesson, tokens: int) -> tuple[list[int], list[int]] | None:
        """A training row of at most `tokens` tokens, or None if not even the first exchange fits."""
        ids = self.prompt(lesson.prompt)
        classes = [CONTEXT] * len(ids)
        start, newline = self.generation_prompt(), self.encode("\n")
        complete = False
        for exchange in lesson.exchanges:
            asked = self.prompt([Message(role="user", content=exchange.question)]) if exchange.question else []
            reply, kinds = self.reply(exchange.reply)
            if len(ids) + len(asked) + len(start) + len(reply) > tokens:
                break
            ids += asked + start + reply + newline
            classes += [CONTEXT] * (len(asked) + len(start)) + kinds + [CONTEXT] * len(newline)
            complete = True
        return (ids[:tokens], classes[:tokens]) if complete else None

    def item(self, item: Item) -> tuple[list[int], list[int]]:
        """An item's prompt with the generation prompt, and the ids of the right reply."""
        prompt = self.prompt(item.reader_messages()) + self.generation_prompt()
        return prompt, self.reply(item.answer)[0]


def pack(rows: Sequence[tuple[list[int], list[int]]], tokens: int) -> np.ndarray:
    """Rows as one array [2, rows, tokens] of uint16: ids and weight classes, padded at the end."""
    packed = np.zeros((2, len(rows), tokens), dtype=np.uint16)
    for i, (ids, classes) in enumerate(rows):
        packed[0, i, : len(ids)] = ids
        packed[1, i, : len(classes)] = classes
    return packed
