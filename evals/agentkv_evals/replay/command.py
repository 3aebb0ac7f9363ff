"""The command `agentkv replay`. Quick to import: what it needs is loaded when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from agentkv.api import Reuse
from agentkv.hub import find_model


def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE.jsonl", help="Recorded conversations, one JSON object a line.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Hugging Face directory, or id on the Hub.", show_default="the repository's"
        ),
    ] = None,
    reuse: Annotated[
        list[Reuse] | None,
        typer.Option(help="Way of reuse, repeatable; off always runs, to compare with.", show_default="all"),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Which reused rows are recomputed.", show_default="reading_change(0.3)"),
    ] = None,
    turns: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Turns of each conversation.", show_default="all")
    ] = None,
    max_context: Annotated[
        int, typer.Option(min=2, metavar="T", help="Turns with more tokens, prompt and reply, are skipped.")
    ] = 4096,
    traces: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Conversations to replay.", show_default="all")
    ] = None,
    kv_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of KV, e.g. 2GiB.", show_default="1GiB")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures here.")] = None,
) -> None:
    """Replay recorded multi-agent conversations without and with reuse.

    Each turn is prompted as its agent would be, and its recorded reply is forced: where the prompt's tokens came from,
    how soon the first token came, and how far the next-token distributions are from full prefill's.
    """
    # torch takes seconds to import: `agentkv --help` must not.
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.replay.run import run_replay  # noqa: PLC0415

    run_replay(
        trace,
        model=find_model(model),
        modes=reuse or list(Reuse),
        selector=selector,
        num_turns=turns,
        max_context=max_context,
        num_traces=traces,
        kv_memory=kv_memory,
        json_file=json,
        console=Console(),
    )
