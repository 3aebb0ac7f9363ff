"""Tasks by name, from the options of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from agentkv.errors import InvalidRequest
from agentkv_evals.accuracy.options import chosen
from agentkv_evals.accuracy.tasks import gsm8k, ruler, traces, worlds
from agentkv_evals.accuracy.tasks.task import TaskSource
from agentkv_evals.worlds.build import DEPTHS


class TaskName(StrEnum):
    """Where items come from."""

    WORLDS = "worlds"
    RULER = "ruler"
    GSM8K = "gsm8k"
    TRACES = "traces"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Options of all tasks; None is a task's own default, and what a task has no use for is refused.

    Attributes:
        name: which task.
        data: file of the items.
        families, depths, topology, question: comma-separated kinds of items.
        items: items of each kind, or conversations.
        hops: prompts of an item that read each other's replies, at most.
        length: tokens of all messages, or most tokens of a prompt.
        reply_tokens: most tokens of a reply that is decoded.
        first_seed: seed of the first item, or its number in the file.
    """

    name: TaskName = TaskName.WORLDS
    data: Path | None = None
    families: str | None = None
    depths: str | None = None
    topology: str | None = None
    question: str | None = None
    items: int = 4
    hops: int | None = None
    length: int | None = None
    reply_tokens: int | None = None
    first_seed: int | None = None

    def source(self) -> TaskSource:
        """The task that these options describe.

        Raises:
            InvalidRequest: an option that can't be used; the message says what can.
        """
        used, make = _TASKS[self.name]
        unused = [
            field.name
            for field in fields(self)
            if field.name not in {"name", "items", "first_seed", *used} and getattr(self, field.name) is not None
        ]
        if unused:
            flag = unused[0].replace("_", "-")
            raise InvalidRequest(f"--{flag} says nothing to the task {self.name}: leave it out", param=unused[0])
        return make(self)

    def file(self) -> Path:
        """The data, where a task needs them. Raises InvalidRequest where they were not given."""
        if self.data is None:
            raise InvalidRequest(f"the task {self.name} reads its items from a file: give --data FILE", param="data")
        return self.data


def _worlds(options: TaskOptions) -> TaskSource:
    every_depth = sorted({depth for each in DEPTHS.values() for depth in each})
    kinds = worlds.world_cells(
        chosen(options.families, list(DEPTHS), "--families"),
        chosen(options.depths, every_depth, "--depths"),
        chosen(options.topology or "parallel", worlds.TOPOLOGIES, "--topology"),
        chosen(options.question or "last", worlds.QUESTIONS, "--question"),
    )
    if not kinds:
        raise InvalidRequest(
            f"no item of {options.families} has depth {options.depths}: the families' depths are {DEPTHS}"
        )
    return worlds.WorldsSource(
        cells=kinds,
        num_items=options.items,
        hops=options.hops or 1,
        length=options.length or 0,
        first_seed=worlds.FIRST_SEED if options.first_seed is None else options.first_seed,
    )


def _ruler(options: TaskOptions) -> TaskSource:
    kinds = ruler.ruler_cells(
        chosen(options.families, ruler.FAMILIES, "--families"),
        chosen(options.topology or "parallel", ruler.TOPOLOGIES, "--topology"),
        chosen(options.question or "last", worlds.QUESTIONS, "--question"),
    )
    return ruler.RulerSource(
        cells=kinds,
        num_items=options.items,
        length=options.length or ruler.LENGTH,
        reply_tokens=options.reply_tokens or ruler.REPLY_TOKENS,
        first_seed=options.first_seed or 0,
    )


def _gsm8k(options: TaskOptions) -> TaskSource:
    return gsm8k.Gsm8kSource(
        data=options.file(),
        num_items=options.items,
        first=options.first_seed or 0,
        reply_tokens=options.reply_tokens or gsm8k.REPLY_TOKENS,
    )


def _traces(options: TaskOptions) -> TaskSource:
    return traces.TracesSource(
        data=options.file(),
        num_items=options.items,
        first=options.first_seed or 0,
        num_turns=options.hops or traces.TURNS,
        length=options.length or traces.LENGTH,
    )


_TASKS: dict[TaskName, tuple[frozenset[str], Callable[[TaskOptions], TaskSource]]] = {
    TaskName.WORLDS: (frozenset({"families", "depths", "topology", "question", "hops", "length"}), _worlds),
    TaskName.RULER: (frozenset({"families", "topology", "question", "length", "reply_tokens"}), _ruler),
    TaskName.GSM8K: (frozenset({"data", "reply_tokens"}), _gsm8k),
    TaskName.TRACES: (frozenset({"data", "hops", "length"}), _traces),
}
"""Each task's options, and how it is made of them."""
