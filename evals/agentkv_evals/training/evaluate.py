"""The embedded model's accuracy by family, depth and question position, with full prefill and with careless reuse."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from rich.table import Table
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from agentkv_evals.training.encode import Encoder
from agentkv_evals.training.reuse import Careless
from agentkv_evals.worlds.build import DEPTHS, make_item
from agentkv_evals.worlds.item import Names, QuestionPosition, Topology
from agentkv_evals.worlds.split import VERSION

FIRST_SEED = 100_000
"""Seeds of the evaluation's items start here; the training's own tables use seeds from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Right replies among `items`; `careless` is None where reuse was not measured."""

    family: str
    depth: int
    question_position: QuestionPosition
    topology: Topology
    names: Names
    items: int
    full: int
    careless: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure: every family and depth, for each position, topology and kind of names."""

    per_cell: int
    positions: tuple[QuestionPosition, ...] = ("last", "first")
    topologies: tuple[Topology, ...] = ("parallel",)
    names: tuple[Names, ...] = ("known",)
    careless: bool = False
    families: tuple[str, ...] = tuple(DEPTHS)


def evaluate(folder: Path, wanted: Wanted) -> list[Cell]:
    """Grade held-out items with an exported model; a reply is right if greedy decoding gives it word for word."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    grader = Careless(model, Encoder(Tokenizer.from_file(str(folder / "tokenizer.json"))))
    cells = []
    for topology in wanted.topologies:
        for names in wanted.names:
            for position in wanted.positions:
                for family in wanted.families:
                    cells += [_cell(grader, wanted, family, d, position, topology, names) for d in DEPTHS[family]]
    return cells


def _cell(
    grader: Careless,
    wanted: Wanted,
    family: str,
    depth: int,
    position: QuestionPosition,
    topology: Topology,
    names: Names,
) -> Cell:
    items = [
        make_item(
            family=family,
            depth=depth,
            seed=FIRST_SEED + i,
            question_position=position,
            topology=topology,
            names=names,
        )
        for i in range(wanted.per_cell)
    ]
    return Cell(
        family=family,
        depth=depth,
        question_position=position,
        topology=topology,
        names=names,
        items=len(items),
        full=sum(grader.full(item) for item in items),
        careless=sum(grader.reused(item) for item in items) if wanted.careless else None,
    )


def as_json(cells: Sequence[Cell], folder: Path) -> dict[str, object]:
    """The cells with what produced them."""
    return {
        "worlds": VERSION,
        "model": folder.name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": f"{platform.machine()} CPU, fp32, {torch.get_num_threads()} thread(s)",
        "first_seed": FIRST_SEED,
        "cells": [asdict(cell) for cell in cells],
    }


def tables(cells: Sequence[Cell]) -> list[Table]:
    """A table for each position, topology and kind of names: percent by family and depth, full or full/careless."""
    made = []
    for key in dict.fromkeys((c.question_position, c.topology, c.names) for c in cells):
        members = [c for c in cells if (c.question_position, c.topology, c.names) == key]
        table = Table(title=f"question {key[0]}, {key[1]}, {key[2]} names (percent right by depth)")
        table.add_column("family")
        for depth in range(5):
            table.add_column(str(depth), justify="right")
        for family in dict.fromkeys(c.family for c in members):
            by_depth = {c.depth: _percent(c) for c in members if c.family == family}
            table.add_row(family, *(by_depth.get(depth, "") for depth in range(5)))
        made.append(table)
    return made


def _percent(cell: Cell) -> str:
    full = f"{100 * cell.full / cell.items:.0f}"
    return full if cell.careless is None else f"{full}/{100 * cell.careless / cell.items:.0f}"
