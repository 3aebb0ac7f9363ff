"""The commands of the embedded model's training. See `LOG.md` for what they gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from agentkv_evals.training import speak
from agentkv_evals.training.cell_file import OtherSettings
from agentkv_evals.training.evaluate import Wanted, evaluate, line, tables
from agentkv_evals.training.export import export
from agentkv_evals.training.loop import Run, train
from agentkv_evals.training.tokenizer import split_names, train_tokenizer
from agentkv_evals.worlds.build import DEPTHS, make_item
from agentkv_evals.worlds.demo import demo_case
from agentkv_evals.worlds.item import Topology

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

ROOT = Path("out/model")
MODEL = Path("agentkv/embedded/model")
TokenizerPath = Annotated[Path, typer.Option(help="A tokenizer.json that `tokenizer` made.")]
ModelPath = Annotated[Path, typer.Option("--model", help="An exported model.")]


@app.command()
def world(family: str = "chain", depth: int = 2, seed: int = 0, position: str = "last") -> None:
    """Print one held-out item as its reader sees it."""
    console = Console(highlight=False)
    item = make_item(
        family=family, depth=depth, seed=seed, question_position="first" if position == "first" else "last"
    )
    for message in item.reader_messages():
        console.print(f"[bold]{message.role} {message.name or ''}[/bold] {message.content}")
    console.print(f"[bold]right reply[/bold] {item.answer}")


@app.command()
def tokenizer(out: TokenizerPath = ROOT / "tokenizer.json", lessons: int = 4000, seed: int = 0) -> None:
    """Train the tokenizer on the worlds' text and on the documentation of this Python."""
    made = train_tokenizer(lessons, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(out))
    print(f"{made.get_vocab_size()} entries, {len(split_names(made))} names split otherwise than at their syllables")


@app.command("train")
def train_command(
    plan: Annotated[str, typer.Argument(help="start, middle, finish, extend or smoke")],
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


@app.command("export")
def export_command(
    weights: Annotated[Path, typer.Option(help="A folder of weights that `train` wrote.")] = ROOT / "run" / "weights",
    tokenizer: TokenizerPath = ROOT / "tokenizer.json",
    out: ModelPath = MODEL,
) -> None:
    """Write the model as a Hugging Face directory (its README.md, the model card, is kept as it is)."""
    export(weights, tokenizer, out)


@app.command("evaluate")
def evaluate_command(
    model: ModelPath = MODEL,
    per_cell: Annotated[int, typer.Option(help="Held-out items for each family, depth and position.")] = 20,
    careless: Annotated[bool, typer.Option(help="Measure careless reuse too.")] = False,
    new_names: Annotated[bool, typer.Option(help="Names of two tokens that training never saw.")] = False,
    topology: Annotated[list[str] | None, typer.Option(help="parallel, chain or debate; again for more.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only these families.")] = None,
    workers: Annotated[int, typer.Option(help="Processes, each of one thread.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of a single process.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write each cell here as it comes; cells already here are kept.")
    ] = None,
) -> None:
    """Accuracy on held-out worlds with full prefill and, if wanted, with careless reuse."""
    torch.set_num_threads(threads)
    wanted = Wanted(
        per_cell=per_cell,
        topologies=tuple(_topology(name) for name in topology or ["parallel"]),
        names=("new",) if new_names else ("known",),
        careless=careless,
        families=tuple(family) if family else tuple(DEPTHS),
    )
    console = Console(highlight=False)
    try:
        cells = evaluate(
            model, wanted, workers=workers, json_file=json_file, tell=lambda cell: console.print(line(cell))
        )
    except OtherSettings as error:
        raise typer.BadParameter(str(error)) from error
    for table in tables(cells):
        console.print(table)


def _topology(name: str) -> Topology:
    known: dict[str, Topology] = {"parallel": "parallel", "chain": "chain", "debate": "debate"}
    if name not in known:
        raise typer.BadParameter(f"{name} is no topology: {', '.join(known)}")
    return known[name]


@app.command()
def sample(model: ModelPath = MODEL, seed: int = 100, documents: int = 3, sentences: int = 8) -> None:
    """Print the demo's dialogues on held-out documents: each agent's reply and whether it is the right one."""
    console, speaker = Console(highlight=False), speak.Speaker(model)
    for number in range(seed, seed + documents):
        case = demo_case(number, sentences=sentences)
        for agent, text in [*speak.run_demo(speaker, case), *speak.run_judge(speaker, number)]:
            console.rule(f"document {number}: {agent.name}")
            console.print(f"[dim]{agent.system}\n{agent.task}[/dim]\n{text}")
            if text != agent.expected:
                console.print(f"[red]expected: {agent.expected}[/red]")
