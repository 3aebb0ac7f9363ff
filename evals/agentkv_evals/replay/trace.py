"""Recorded conversations: a JSONL file with one of `{"id", "messages": [{"agent", "content"}, ...]}` a line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentkv.errors import ConfigError

EXPECTED = 'one JSON object a line: {"id": "...", "messages": [{"agent": "...", "content": "..."}, ...]}'

# Speakers without a model: people, code executors, fixed rules. The others read what they say, but no prompt led to it.
_NO_MODEL = frozenset(
    {"human", "user", "computer_terminal", "computerterminal", "orchestrator (termination condition)"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One recorded message.

    Attributes:
        agent: who said it. A remark behind the name, as in `Orchestrator (thought)`, is left out: it is one agent.
        content: the text.
        by_model: whether a model wrote it.
    """

    agent: str
    content: str
    by_model: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One recorded conversation."""

    id: str
    messages: tuple[Said, ...]


def read_traces(path: Path) -> list[Trace]:
    """Read all conversations of a file.

    Raises:
        ConfigError: no such file, or a line that is no conversation; says which line, and what is expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read {path}: {error}. Give a file with {EXPECTED}") from error
    traces = list(_parse(text, path))
    if not traces:
        raise ConfigError(f"{path} holds no conversation: give {EXPECTED}")
    return traces


def _parse(text: str, path: Path) -> Iterator[Trace]:
    # Not splitlines(): JSON strings may hold U+2028 and other line ends as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _trace(json.loads(line))
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: {error}. Expected is {EXPECTED}") from None


def _trace(content: Any) -> Trace:
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise ValueError("it is no object with a list `messages`")
    if not isinstance(content.get("id"), str):
        raise ValueError("it has no text `id`")
    return Trace(id=content["id"], messages=tuple(_said(item, i) for i, item in enumerate(content["messages"])))


def _said(item: Any, index: int) -> Said:
    fields = [item.get(name) if isinstance(item, dict) else None for name in ("agent", "content")]
    if not all(isinstance(value, str) for value in fields) or not str(fields[0]).strip():
        raise ValueError(f"messages[{index}] has no text `agent` and `content`")
    label, content = str(fields[0]).strip(), str(fields[1])
    name = label.partition(" (")[0]
    return Said(agent=name, content=content, by_model=label.lower() not in _NO_MODEL and item.get("role") != "tool")
