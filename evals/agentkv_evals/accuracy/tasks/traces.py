"""The task `traces`: recorded conversations, whose next message is forced on every arm: it needs no answers.

Everybody reads all that was said before. An agent's message is read with the KV that the arm's own reading led to; what
people and programs said is read with the KV of the agent that read it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from agentkv.tokenization import ChatTokenizer
from agentkv_evals.accuracy.cases import Case, Cell, reply_source
from agentkv_evals.accuracy.tasks.chats import Chats, Turn
from agentkv_evals.accuracy.tasks.gsm8k import in_file, read_data
from agentkv_evals.accuracy.tasks.task import Replies, Task
from agentkv_evals.replay.trace import read_traces
from agentkv_evals.replay.turns import Turn as RecordedTurn
from agentkv_evals.replay.turns import turns_of

TURNS, LENGTH = 8, 4096
_CELL = Cell(family="traces", topology="chat")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracesSource:
    """See `TaskSource`.

    Attributes:
        data: conversations, as `agentkv replay` reads them.
        num_items, first: how many, and the number of the first one.
        num_turns: most turns of a conversation.
        length: a conversation ends before a turn with more tokens than these, prompt and reply.
    """

    data: Path
    num_items: int
    first: int
    num_turns: int
    length: int

    def open(self, model: Path) -> Task:
        """See `TaskSource.open`."""
        return Traces(self, ChatTokenizer.from_directory(model))


class Traces:
    """See `Task`."""

    name = "traces"
    generates = False

    def __init__(self, source: TracesSource, tokenizer: ChatTokenizer) -> None:
        self._source = source
        self._chats = Chats(tokenizer)
        self._turns = [
            [turn for turn in turns_of(trace) if turn.reply.strip()][: source.num_turns]
            for trace in read_traces(source.data)
        ]
        digest = sha256(read_data(source.data)).hexdigest()[:12]
        self.version = f"traces-1/{digest}/{source.num_turns}/{source.length}"

    @property
    def items(self) -> Sequence[tuple[Cell, int]]:
        """See `Task.items`: the seed is the number of the conversation in the file."""
        return in_file([_CELL], self._source.num_items, self._source.first, len(self._turns), self._source.data)

    def case(self, cell: Cell, seed: int, replies: Replies = ()) -> Case | None:
        """See `Task.case`."""
        case = self._chats.case(cell, seed, partial(_turn, self._turns[seed]), replies)
        if case is None or len(case.prompt) + len(case.reply or ()) > self._source.length:
            return None
        return case

    def is_right(self, *_case_and_reply: object) -> bool | None:
        """See `Task.is_right`: nobody can say."""
        return None

    def same_choice(self, *_case_and_replies: object) -> bool | None:
        """See `Task.same_choice`: nothing is chosen."""
        return None


def _turn(turns: Sequence[RecordedTurn], said: Sequence[str]) -> Turn | None:
    if len(said) == len(turns):
        return None
    turn = turns[len(said)]
    steps = {each.index: step for step, each in enumerate(turns[: len(said)], start=1)}
    keys = (reply_source(steps[n]) if n in steps else f"message {n}" for n in range(turn.index))
    return Turn(
        part=f"turn {len(said) + 1}",
        hop=len(said) + 1,
        messages=turn.prompt,
        keys=(None, *keys),
        reply=turn.reply,
    )
