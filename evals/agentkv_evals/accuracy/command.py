"""The command `agentkv eval`. Quick to import: what it needs is loaded when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Suite(StrEnum):
    """What can be measured."""

    ACCURACY = "accuracy"


class Task(StrEnum):
    """Data of the accuracy suite; `tasks.sources.TaskName` without what that imports."""

    WORLDS = "worlds"
    RULER = "ruler"
    GSM8K = "gsm8k"
    TRACES = "traces"


def evaluate(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")],  # noqa: ARG001 (there is one)
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face model directory.", show_default="the repository's")
    ] = None,
    task: Annotated[
        Task,
        typer.Option(
            help="Where the items come from: the repository's model's own, plain text of any length, "
            "five agents over --data, or recorded conversations of --data."
        ),
    ] = Task.WORLDS,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines of gsm8k or traces.")] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Rule to compare, e.g. 'query_attention(0.1)'; without arguments at every --ratio; repeatable.",
            show_default="reading_change",
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Shares of the row-layers.", show_default="0.02,0.05,0.1,0.15,0.2,0.3"),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Compare the usual rules too, at their published settings.")] = True,
    families: Annotated[str | None, typer.Option(metavar="A,B", help="Families.", show_default="all")] = None,
    depths: Annotated[
        str | None, typer.Option(metavar="N,M", help="References between question and answer.", show_default="all")
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="What authors saw: parallel, chain, debate.", show_default="parallel"),
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="A,B", help="Where the question stands: last, first.", show_default="last")
    ] = None,
    items: Annotated[int, typer.Option(min=1, metavar="N", help="Items of each cell, or of the file.")] = 4,
    hops: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=8,
            metavar="N",
            help="Pass each reply on to a next agent, so often in all; of traces, turns.",
            show_default="1; traces: 8",
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=64,
            metavar="T",
            help="Tokens of all messages (worlds, ruler), most tokens of a prompt with its reply (traces).",
            show_default="what matters only; ruler: 1024; traces: 4096",
        ),
    ] = None,
    reply_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="T", help="Most tokens of a reply of ruler or gsm8k.", show_default="48; gsm8k: 256"
        ),
    ] = None,
    first_seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Seed of a cell's first item, or its number in --data.", show_default="200000; 0"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu or cuda.", show_default="cpu")] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Most requests at once; 1 for times.")] = 16,
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes of KV.")] = "2GiB",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results; a run goes on there.")] = Path(
        "out/accuracy"
    ),
) -> None:
    """Compare rules of repair with full prefill, on the same held-out items.

    Every agent's message is read with the KV of its author's own context. Results are JSON lines and one HTML page.
    """
    # torch takes seconds to import: `agentkv --help` must not.
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.accuracy.run import run_accuracy  # noqa: PLC0415
    from agentkv_evals.accuracy.settings import Settings  # noqa: PLC0415
    from agentkv_evals.accuracy.tasks.sources import TaskName, TaskOptions  # noqa: PLC0415

    options = TaskOptions(
        name=TaskName(task),
        data=data,
        families=families,
        depths=depths,
        topology=topology,
        question=question,
        items=items,
        hops=hops,
        length=length,
        reply_tokens=reply_tokens,
        first_seed=first_seed,
    )
    settings = Settings.of(
        model=model,
        task=options,
        rules=selector,
        ratios=ratio,
        peers=peers,
        device=device,
        batch=batch,
        kv_memory=kv_memory,
        out=out,
    )
    run_accuracy(settings, Console())
