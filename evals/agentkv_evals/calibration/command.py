"""The command `agentkv calibrate`. Quick to import: what it needs is loaded when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from agentkv_evals.accuracy.command import Task


def calibrate(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face model directory.", show_default="the repository's")
    ] = None,
    task: Annotated[Task, typer.Option(help="Where the items come from; see `agentkv eval accuracy`.")] = Task.WORLDS,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines of gsm8k or traces.")] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help="Rule to calibrate; repeatable.", show_default="all that say what they leave"
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Shares of the row-layers.", show_default="eight from 0.02 to 0.9"),
    ] = None,
    families: Annotated[str | None, typer.Option(metavar="A,B", help="Families.", show_default="all")] = None,
    depths: Annotated[str | None, typer.Option(metavar="N,M", help="Depths.", show_default="all")] = None,
    topology: Annotated[
        str | None, typer.Option(metavar="A,B", help="What authors saw.", show_default="parallel")
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="A,B", help="Where the question stands.", show_default="last")
    ] = None,
    items: Annotated[int, typer.Option(min=1, metavar="N", help="Items of each cell, or of the file.")] = 2,
    hops: Annotated[int | None, typer.Option(min=1, max=8, metavar="N", help="Replies passed on, or turns.")] = None,
    length: Annotated[int | None, typer.Option(min=64, metavar="T", help="Tokens of messages, or of a prompt.")] = None,
    reply_tokens: Annotated[int | None, typer.Option(min=1, metavar="T", help="Most tokens of a reply.")] = None,
    first_seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="First seed, or number in --data.", show_default="300000; 0")
    ] = None,
    quantile: Annotated[
        float, typer.Option(min=0.5, max=0.999, metavar="Q", help="Share of prompts that stay below the estimate.")
    ] = 0.9,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu or cuda.", show_default="cpu")] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Most requests at once.")] = 16,
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes of KV.")] = "2GiB",
    rows: Annotated[Path, typer.Option(metavar="DIR", help="Folder of what is measured; a run goes on there.")] = Path(
        "out/calibration"
    ),
    out: Annotated[Path, typer.Option(metavar="FILE", help="The calibration.")] = Path("calibration.json"),
) -> None:
    """Measure how the error of a model's answers follows from what a rule leaves unrepaired.

    Curves are fitted to one half of the families and judged by the other. `agentkv serve --calibration FILE` then
    estimates the error of every chat, and keeps it below `--target-kl`.
    """
    # torch takes seconds to import: `agentkv --help` must not.
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.accuracy.settings import Settings  # noqa: PLC0415
    from agentkv_evals.accuracy.tasks.sources import TaskName, TaskOptions  # noqa: PLC0415
    from agentkv_evals.calibration.run import RATIOS, RULES, run_calibration  # noqa: PLC0415

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
        # Seeds of the suite's default items are left alone: what is judged there was not calibrated on.
        first_seed=_FIRST_SEED if first_seed is None and task in (Task.WORLDS, Task.RULER) else first_seed,
    )
    settings = Settings.of(
        model=model,
        task=options,
        rules=selector or RULES,
        ratios=ratio or RATIOS,
        peers=False,
        device=device,
        batch=batch,
        kv_memory=kv_memory,
        out=rows,
    )
    run_calibration(settings, out, quantile=quantile, console=Console())


_FIRST_SEED = 300_000
