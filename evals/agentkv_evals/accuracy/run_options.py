"""Options of every command that asks items of an engine. Quick to import: what they are checked by is loaded later."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agentkv_evals.accuracy.tasks.sources import TaskOptions


class Task(StrEnum):
    """Data of the accuracy suite; `tasks.sources.TaskName` without what that imports."""

    WORLDS = "worlds"
    RULER = "ruler"
    GSM8K = "gsm8k"
    TRACES = "traces"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOptions:
    """Which items, but for how many and from which seed on."""

    task: Annotated[
        Task,
        typer.Option(
            help="Where the items come from: the repository's model's own, plain text of any length, "
            "five agents over --data, or recorded conversations of --data."
        ),
    ] = Task.WORLDS
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines of gsm8k or traces.")] = None
    families: Annotated[str | None, typer.Option(metavar="A,B", help="Families.", show_default="all")] = None
    depths: Annotated[
        str | None, typer.Option(metavar="N,M", help="References between question and answer.", show_default="all")
    ] = None
    topology: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="What authors saw: parallel, chain, debate.", show_default="parallel"),
    ] = None
    question: Annotated[
        str | None, typer.Option(metavar="A,B", help="Where the question stands: last, first.", show_default="last")
    ] = None
    hops: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=8,
            metavar="N",
            help="Pass each reply on to a next agent, so often in all; of traces, turns.",
            show_default="1; traces: 8",
        ),
    ] = None
    length: Annotated[
        int | None,
        typer.Option(
            min=64,
            metavar="T",
            help="Tokens of all messages (worlds, ruler), most tokens of a prompt with its reply (traces).",
            show_default="what matters only; ruler: 1024; traces: 4096",
        ),
    ] = None
    reply_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="T", help="Most tokens of a reply of ruler or gsm8k.", show_default="48; gsm8k: 256"
        ),
    ] = None

    def source(self, *, items: int, first_seed: int | None) -> TaskOptions:
        """The task's options: so many items from this seed on."""
        # Its tasks import torch.
        from agentkv_evals.accuracy.tasks.sources import TaskName, TaskOptions  # noqa: PLC0415

        return TaskOptions(
            **{field: value for field, value in asdict(self).items() if field != "task"},
            name=TaskName(self.task),
            items=items,
            first_seed=first_seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The engine they are asked of."""

    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face model directory.", show_default="the repository's")
    ] = None
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu or cuda.", show_default="cpu")] = None
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Most requests at once; 1 for times.")] = 16
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes of KV.")] = "2GiB"
