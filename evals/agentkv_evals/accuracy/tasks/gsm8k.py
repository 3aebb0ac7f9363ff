"""The task `gsm8k`: five agents solve a grade-school problem: three solve, one criticises, one decides.

All read the problem; the critic reads the solutions, and the voter reads them and the critique. Every arm's agents read
what its own agents wrote. The voter's last number is the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from agentkv.errors import ConfigError
from agentkv.tokenization import ChatTokenizer
from agentkv_evals.accuracy.cases import Case, Cell, reply_source
from agentkv_evals.accuracy.tasks.chats import Chats, Turn, chat, numbered
from agentkv_evals.accuracy.tasks.task import Replies, Task

REPLY_TOKENS = 256
EXPECTED = 'one JSON object a line: {"question": "...", "answer": "... #### NUMBER"}'

_SOLVERS = (
    "You are solver 1. Work the problem out step by step in a few short sentences. End with: The answer is NUMBER.",
    "You are solver 2. First name the quantities of the problem, then calculate. End with: The answer is NUMBER.",
    "You are solver 3. Solve the problem, then check your result. End with: The answer is NUMBER.",
)
_CRITIC = (
    "You are the critic. Read the problem and what the solvers wrote. Say which steps are wrong and why, in a few "
    "short sentences. Do not solve it anew."
)
_VOTER = (
    "You are the voter. Read the problem, the solutions and the critique. Choose the answer that is right. End with: "
    "The answer is NUMBER."
)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_CELL = Cell(family="gsm8k", topology="graph", question="first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question and the number that answers it."""

    question: str
    answer: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gsm8kSource:
    """See `TaskSource`.

    Attributes:
        data: JSON lines.
        num_items, first: how many problems, and the number of the first one.
        reply_tokens: most tokens of a reply.
    """

    data: Path
    num_items: int
    first: int
    reply_tokens: int

    def open(self, model: Path) -> Task:
        """See `TaskSource.open`."""
        return Gsm8k(self, ChatTokenizer.from_directory(model))


class Gsm8k:
    """See `Task`."""

    name = "gsm8k"
    generates = True

    def __init__(self, source: Gsm8kSource, tokenizer: ChatTokenizer) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._chats = Chats(tokenizer)
        content = read_data(source.data)
        self._problems = parse_lines(content, source.data, EXPECTED, _problem)
        self.version = f"gsm8k-1/{sha256(content).hexdigest()[:12]}/{source.reply_tokens}"

    @property
    def items(self) -> Sequence[tuple[Cell, int]]:
        """See `Task.items`: the seed is the number of the problem in the file."""
        return in_file([_CELL], self._source.num_items, self._source.first, len(self._problems), self._source.data)

    def case(self, cell: Cell, seed: int, replies: Replies = ()) -> Case | None:
        """See `Task.case`."""
        script = partial(_turn, self._problems[seed].question, self._source.reply_tokens)
        return self._chats.case(cell, seed, script, replies)

    def is_right(self, case: Case, reply: tuple[int, ...]) -> bool | None:
        """See `Task.is_right`: the voter's last number."""
        if case.part != "voter":
            return None
        number = last_number(self._tokenizer.decode(reply))
        return number is not None and abs(number - self._problems[case.seed].answer) < 1e-6

    def same_choice(self, case: Case, reply: tuple[int, ...], other: tuple[int, ...]) -> bool | None:
        """See `Task.same_choice`: whether the voter chooses the same number, where full prefill's names one."""
        chosen = last_number(self._tokenizer.decode(reply)) if case.part == "voter" else None
        return None if chosen is None else last_number(self._tokenizer.decode(other)) == chosen


def last_number(text: str) -> float | None:
    """The last number of a text; None without one."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def read_data(path: Path) -> bytes:
    """A data file's bytes. Raises ConfigError where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read --data {path}: {error}. Give a file that is there.") from error


def parse_lines(content: bytes, path: Path, expected: str, parse: Any) -> list[Any]:
    """What `parse` makes of each JSON line. Raises ConfigError that names the line."""
    parsed = []
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), start=1):
        if line.strip():
            try:
                parsed.append(parse(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ConfigError(f"{path}, line {number}: {reason}. Expected is {expected}") from None
    if not parsed:
        raise ConfigError(f"{path} holds no item: give {expected}")
    return parsed


def in_file(
    cells: Sequence[Cell], num_items: int, first: int, num_there: int, path: Path
) -> Sequence[tuple[Cell, int]]:
    """Items by their number in a file. Raises ConfigError where there are not as many."""
    if first + num_items > num_there:
        raise ConfigError(
            f"{path} has {num_there} items, not {num_items} from number {first} on: lower --items or --first-seed"
        )
    return numbered(cells, num_items, first)


def _problem(content: Any) -> Problem:
    answer = last_number(str(content["answer"]).rpartition("####")[2])
    if answer is None:
        raise ValueError("the answer has no number behind ####")
    return Problem(question=str(content["question"]), answer=answer)


def _turn(question: str, reply_tokens: int, said: Sequence[str]) -> Turn | None:
    """Solvers 1 to 3, the critic, the voter."""
    names = ["solver_1", "solver_2", "solver_3", "critic", "voter"]
    systems = [*_SOLVERS, _CRITIC, _VOTER]
    step = len(said)
    if step == len(names):
        return None
    read = 0 if step < len(_SOLVERS) else step
    messages = chat(
        ("system", systems[step]),
        ("user", question),
        *(("user", said[n], names[n]) for n in range(read)),
    )
    return Turn(
        part=names[step],
        hop=max(step - len(_SOLVERS), -1) + 2,
        messages=messages,
        keys=(None, "question", *(reply_source(n + 1) for n in range(read))),
        max_tokens=reply_tokens,
    )
