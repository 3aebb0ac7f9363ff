"""The command `agentkv calibrate`. Quick to import: what it needs is loaded when it runs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from agentkv.options import takes
from agentkv_evals.accuracy.run_options import EngineOptions, ItemOptions, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveOptions:
    """What is calibrated, or checked, on how many items."""

    selector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Rule to calibrate; repeatable.",
            show_default="all that say what they leave; --check: those calibrated",
        ),
    ] = None
    ratio: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Shares of the row-layers.", show_default="eight from 0.02 to 0.9"),
    ] = None
    items: Annotated[int, typer.Option(min=1, metavar="N", help="Items of each cell, or of the file.")] = 2
    first_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="First seed, or number in --data.",
            show_default="300000, --check: 400000; 0",
        ),
    ] = None
    quantile: Annotated[
        float, typer.Option(min=0.5, max=0.999, metavar="Q", help="Share of prompts that stay below the estimate.")
    ] = 0.9
    check: Annotated[bool, typer.Option("--check", help="Make no calibration: judge that of --out by these items.")] = (
        False
    )
    target: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            metavar="NATS",
            help="With --check: a --target-kl to try; repeatable.",
            show_default="0.01, 0.05, 0.3",
        ),
    ] = None
    rows: Annotated[Path, typer.Option(metavar="DIR", help="Folder of what is measured; a run goes on there.")] = Path(
        "out/calibration"
    )
    out: Annotated[Path, typer.Option(metavar="FILE", help="The calibration.")] = Path("calibration.json")

    def seed(self, task: Task) -> int | None:
        """The first seed. Those of the suite's default items are left alone, and a check has its own: what is judged
        there was not calibrated on."""
        if self.first_seed is not None or task not in (Task.WORLDS, Task.RULER):
            return self.first_seed
        return 400_000 if self.check else 300_000


@takes(CurveOptions, ItemOptions, EngineOptions)
def calibrate(curves: CurveOptions, items: ItemOptions, engine: EngineOptions) -> None:
    """Measure how the error of a model's answers follows from what a rule leaves unrepaired.

    A curve that is fitted to one half of the families is judged by the other; what is written is fitted to all.
    `agentkv serve --calibration FILE` then estimates the error of every chat, and keeps it below `--target-kl`. With
    `--check`, a calibration that is there is judged on items that it has not seen: its estimates, and what chats get
    at several targets.
    """
    # torch takes seconds to import: `agentkv --help` must not.
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.accuracy.settings import Settings  # noqa: PLC0415
    from agentkv_evals.calibration.check import TARGETS, run_check  # noqa: PLC0415
    from agentkv_evals.calibration.run import RATIOS, RULES, run_calibration  # noqa: PLC0415

    settings = Settings.of(
        **asdict(engine),
        task=items.source(items=curves.items, first_seed=curves.seed(items.task)),
        rules=curves.selector or RULES,
        ratios=curves.ratio or RATIOS,
        peers=False,
        out=curves.rows,
    )
    if curves.check:
        run_check(settings, curves.out, targets=curves.target or TARGETS, console=Console())
    else:
        run_calibration(settings, curves.out, quantile=curves.quantile, console=Console())
