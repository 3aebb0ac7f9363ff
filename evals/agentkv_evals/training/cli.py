"""The commands of the embedded model's training. See `LOG.md` for what they gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentkv_evals.training.loop import Run, train

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

ROOT = Path("out/model")
TokenizerPath = Annotated[Path, typer.Option(help="A tokenizer.json that `tokenizer` made.")]


@app.callback()
def _main() -> None:
    """Keep subcommands even while there is one."""


@app.command("train")
def train_command(
    plan: Annotated[str, typer.Argument(help="start, middle, finish or smoke")],
    out: Annotated[Path, typer.Option(help="Where weights and history go.")] = ROOT / "run",
    resume: Annotated[Path | None, typer.Option(help="A folder of weights of an earlier piece.")] = None,
    tokenizer: TokenizerPath = ROOT / "tokenizer.json",
    minutes: float = 9.0,
    device: str = "cuda",
    workers: int = 14,
    seed: int = 0,
    compile_blocks: Annotated[bool, typer.Option("--compile/--eager")] = True,
    evaluate_every: Annotated[float, typer.Option(help="Seconds between accuracy tables.")] = 60.0,
    per_cell: Annotated[int, typer.Option(help="Held-out items for each cell of the table.")] = 16,
    give_up_after: Annotated[float, typer.Option(help="Seconds after which --give-up-below is applied.")] = 1e9,
    give_up_below: float = 0.0,
) -> None:
    """Train one piece of a plan; the next piece resumes from its weights."""
    train(
        Run(
            plan=plan,
            tokenizer=tokenizer,
            out=out,
            minutes=minutes,
            resume=resume,
            device=device,
            workers=workers,
            seed=seed,
            compile=compile_blocks,
            evaluate_every=evaluate_every,
            per_cell=per_cell,
            give_up=(give_up_after, give_up_below),
        )
    )
