"""What a task is: one thread of agents' messages, one question, one right answer, and what each author had read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentkv_evals.worlds.split import Split

Topology = Literal["parallel", "chain", "debate"]
QuestionPosition = Literal["last", "first"]
Names = Literal["known", "new"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A chat message as clients send it; `name` is the agent's label or None."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One agent's message and the context in which it was written.

    `system` and `source` are what the author read (its instructions, its document); `sees` are the indices of
    earlier turns that stood between the two. `content` is what the author wrote.
    """

    author: str
    system: str
    source: str
    sees: tuple[int, ...]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question over one thread. `answer` is the whole reply that the reader must give, word for word.

    `names` tells whether the world's names are words of the training or new ones of two tokens. `depth`
    counts the cross-message references between the question and its answer. `reader_system` and `instruction`
    are the reader's own fresh text. With the question first, `reader_system` holds it and `instruction` is None.
    """

    version: str
    seed: int
    split: Split
    family: str
    depth: int
    topology: Topology
    question_position: QuestionPosition
    names: Names
    message_role: str
    turns: tuple[Turn, ...]
    reader: str
    reader_system: str
    instruction: str | None
    answer: str

    def reader_messages(self) -> list[Message]:
        """The reader's whole prompt, before the generation prompt."""
        thread = [Message(role=self.message_role, name=turn.author, content=turn.content) for turn in self.turns]
        last = [] if self.instruction is None else [Message(role="user", content=self.instruction)]
        return [Message(role="system", content=self.reader_system), *thread, *last]

    def author_messages(self, index: int) -> list[Message]:
        """What the author of turn `index` had read when it wrote that turn, before the generation prompt."""
        turn = self.turns[index]
        seen = [self.turns[i] for i in turn.sees]
        return [
            Message(role="system", content=turn.system),
            *(Message(role=self.message_role, name=other.author, content=other.content) for other in seen),
            Message(role="user", content=turn.source),
        ]
