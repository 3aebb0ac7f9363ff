"""The embedded model's accuracy by family, depth and question position, with full prefill and with careless reuse."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.table import Table
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from agentkv_evals.training.cell import Cell, Place
from agentkv_evals.training.cell_file import CellFile
from agentkv_evals.training.encode import Encoder
from agentkv_evals.training.reuse import Careless
from agentkv_evals.worlds.build import DEPTHS, make_item
from agentkv_evals.worlds.item import Names, QuestionPosition, Topology
from agentkv_evals.worlds.split import VERSION

FIRST_SEED = 100_000
"""Seeds of the evaluation's items start here; the training's own tables use seeds from 0."""

Job = tuple[Place, int, bool]
"""A cell to measure: its place, its number of items, whether careless reuse is measured too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure: every family and depth, for each position, topology and kind of names."""

    per_cell: int
    positions: tuple[QuestionPosition, ...] = ("last", "first")
    topologies: tuple[Topology, ...] = ("parallel",)
    names: tuple[Names, ...] = ("known",)
    careless: bool = False
    families: tuple[str, ...] = tuple(DEPTHS)

    def places(self) -> list[Place]:
        """The cells in the order in which they are measured."""
        return [
            Place(family, depth, position, topology, names)
            for topology in self.topologies
            for names in self.names
            for position in self.positions
            for family in self.families
            for depth in DEPTHS[family]
        ]


def evaluate(
    folder: Path,
    wanted: Wanted,
    *,
    workers: int = 1,
    json_file: Path | None = None,
    tell: Callable[[Cell], object] = lambda _: None,
) -> list[Cell]:
    """Grade held-out items with an exported model; a reply is right if greedy decoding gives it word for word.

    Every cell is told to `tell` and written to `json_file` as it comes; cells that the file has already are not
    measured again. With several workers each process measures one cell at a time on one thread.

    Raises:
        OtherSettings: `json_file` holds cells of another model or of other worlds.
    """
    measured = CellFile(json_file, settings(folder), machine(workers))
    places = wanted.places()
    jobs = [(p, wanted.per_cell, wanted.careless) for p in places]
    for cell in _cells(folder, [job for job in jobs if not measured.has(*job)], workers):
        measured.add(cell)
        tell(cell)
    return measured.of(places)


def settings(folder: Path) -> dict[str, object]:
    """What two runs must share for their cells to belong together."""
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"worlds": VERSION, "model": folder.name, "weights_sha256": weights, "first_seed": FIRST_SEED}


def machine(workers: int) -> dict[str, object]:
    """What measured."""
    threads = torch.get_num_threads() if workers == 1 else 1
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": f"{platform.machine()} CPU, fp32, {workers} process(es) of {threads} thread(s)",
    }


def _cells(folder: Path, jobs: Sequence[Job], workers: int) -> Iterator[Cell]:
    if workers == 1:
        grader = _grader(folder)
        yield from (_cell(grader, job) for job in jobs)
        return
    with mp.get_context("spawn").Pool(workers, _start_worker, (folder,)) as pool:
        yield from pool.imap(_cell_of_worker, jobs)


def _grader(folder: Path) -> Careless:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Careless(model, Encoder(Tokenizer.from_file(str(folder / "tokenizer.json"))))


_worker: dict[str, Careless] = {}
"""The grader of this process, where it is a worker."""


def _start_worker(folder: Path) -> None:
    torch.set_num_threads(1)
    _worker["grader"] = _grader(folder)


def _cell_of_worker(job: Job) -> Cell:
    return _cell(_worker["grader"], job)


def _cell(grader: Careless, job: Job) -> Cell:
    place, count, careless = job
    items = [
        make_item(
            family=place.family,
            depth=place.depth,
            seed=FIRST_SEED + i,
            question_position=place.question_position,
            topology=place.topology,
            names=place.names,
        )
        for i in range(count)
    ]
    return Cell(
        place=place,
        items=count,
        full=sum(grader.full(item) for item in items),
        careless=sum(grader.reused(item) for item in items) if careless else None,
    )


def line(cell: Cell) -> str:
    """One cell in words."""
    place = cell.place
    where = f"{place.topology} {place.names} question {place.question_position}"
    return f"{where} {place.family} {place.depth}: {cell.percent()} of {cell.items}"


def tables(cells: Sequence[Cell]) -> list[Table]:
    """A table for each position, topology and kind of names: percent by family and depth, full or full/careless."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        place = cell.place
        groups.setdefault((place.question_position, place.topology, place.names), []).append(cell)
    return [
        _table(f"question {position}, {topology}, {names} names (percent right by depth)", members)
        for (position, topology, names), members in groups.items()
    ]


def _table(title: str, cells: Sequence[Cell]) -> Table:
    table = Table(title=title)
    table.add_column("family")
    for depth in range(5):
        table.add_column(str(depth), justify="right")
    for family in dict.fromkeys(cell.place.family for cell in cells):
        by_depth = {cell.place.depth: cell.percent() for cell in cells if cell.place.family == family}
        table.add_row(family, *(by_depth.get(depth, "") for depth in range(5)))
    return table
