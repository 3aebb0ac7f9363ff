"""The command `agentkv eval`. Quick to import: what it needs is loaded when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Suite(StrEnum):
    """What can be measured."""

    ACCURACY = "accuracy"


class Task(StrEnum):
    """Data of the accuracy suite. (Trace agreement has a command of its own: `agentkv replay`.)"""

    WORLDS = "worlds"


def evaluate(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")],  # noqa: ARG001 (there is one)
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face model directory.", show_default="the repository's")
    ] = None,
    task: Annotated[Task, typer.Option(help="Where the items come from.")] = Task.WORLDS,  # noqa: ARG001 (one)
    selector: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="One more rule to compare, e.g. 'query_attention(0.1)'; repeatable."),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Compare the usual rules too.")] = True,
    families: Annotated[str | None, typer.Option(metavar="A,B", help="Families.", show_default="all")] = None,
    depths: Annotated[
        str | None, typer.Option(metavar="N,M", help="References between question and answer.", show_default="all")
    ] = None,
    topology: Annotated[
        str, typer.Option(metavar="A,B", help="What authors saw: parallel, chain, debate.")
    ] = "parallel",
    question: Annotated[str, typer.Option(metavar="A,B", help="Where the question stands: last, first.")] = "last",
    items: Annotated[int, typer.Option(min=1, metavar="N", help="Items of each cell.")] = 4,
    hops: Annotated[
        int, typer.Option(min=1, max=8, metavar="N", help="Pass each reply on to a next agent, so often in all.")
    ] = 1,
    first_seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of a cell's first item.")] = 200_000,
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

    settings = Settings.of(
        model=model,
        rules=selector or (),
        peers=peers,
        families=families,
        depths=depths,
        topology=topology,
        question=question,
        items=items,
        hops=hops,
        first_seed=first_seed,
        device=device,
        batch=batch,
        kv_memory=kv_memory,
        out=out,
    )
    run_accuracy(settings, Console())
