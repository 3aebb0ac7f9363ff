"""The command `agentkv demo`. Quick to import: what it needs is loaded when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from agentkv.errors import ConfigError
from agentkv.hub import find_model


def demo(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Hugging Face directory, or id on the Hub.", show_default="the repository's"
        ),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Which reused rows are recomputed.", show_default="reading_change(0.3)"),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures here.")] = None,
) -> None:
    """Run five LangGraph agents without and with reuse, and compare.

    Three researchers read a document in parallel, a critic reads their reports, a writer reads the reports and the
    critique.
    """
    # torch and LangGraph take seconds to import: `agentkv --help` must not. LangGraph is an extra.
    from rich.console import Console  # noqa: PLC0415

    try:
        from agentkv_evals.demo.run import run_demo  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"the demo needs {error.name}: pip install 'agentkv[evals]'") from error

    run_demo(model=find_model(model), selector=selector, json_file=json, console=Console())
