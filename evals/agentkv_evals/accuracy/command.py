"""The command `agentkv eval`. Quick to import: what it needs is loaded when it runs."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentkv.options import takes
from agentkv_evals.accuracy.run_options import EngineOptions, ItemOptions


class Suite(StrEnum):
    """What can be measured."""

    ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What is compared on how many items."""

    suite: Annotated[Suite, typer.Argument(help="What to measure.")]
    selector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Rule to compare, e.g. 'query_attention(0.1)'; without arguments at every --ratio; repeatable.",
            show_default="reading_change",
        ),
    ] = None
    ratio: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Shares of the row-layers.", show_default="0.02,0.05,0.1,0.15,0.2,0.3"),
    ] = None
    peers: Annotated[bool, typer.Option(help="Compare the usual rules too, at their published settings.")] = True
    items: Annotated[int, typer.Option(min=1, metavar="N", help="Items of each cell, or of the file.")] = 4
    first_seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Seed of a cell's first item, or its number in --data.", show_default="200000; 0"
        ),
    ] = None
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results; a run goes on there.")] = Path(
        "out/accuracy"
    )


@takes(CompareOptions, ItemOptions, EngineOptions)
def evaluate(compare: CompareOptions, items: ItemOptions, engine: EngineOptions) -> None:
    """Compare rules of repair with full prefill, on the same held-out items.

    Every agent's message is read with the KV of its author's own context. Results are JSON lines and one HTML page.
    """
    # torch takes seconds to import: `agentkv --help` must not.
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.accuracy.run import run_accuracy  # noqa: PLC0415
    from agentkv_evals.accuracy.settings import Settings  # noqa: PLC0415

    settings = Settings.of(
        **asdict(engine),
        task=items.source(items=compare.items, first_seed=compare.first_seed),
        rules=compare.selector,
        ratios=compare.ratio,
        peers=compare.peers,
        out=compare.out,
    )
    run_accuracy(settings, Console())
