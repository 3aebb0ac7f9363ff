"""Quick accuracy with the training definition: is the right reply what greedy decoding would give?

A reply is right if every one of its tokens is the most likely one after the right tokens before it, which for greedy
decoding is the same as generating it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agentkv_evals.training.encode import Encoder
from agentkv_evals.training.model import Decoder
from agentkv_evals.worlds.build import DEPTHS, make_item
from agentkv_evals.worlds.demo import demo_case
from agentkv_evals.worlds.item import Message, Names, QuestionPosition
from agentkv_evals.worlds.split import Split


@dataclass(frozen=True, slots=True)
class Graded:
    """An encoded item and the cell of the table it counts for."""

    cell: tuple[str, int, str]
    prompt: list[int]
    reply: list[int]


def graded_items(encoder: Encoder, per_cell: int, split: Split = "heldout", names: Names = "known") -> list[Graded]:
    """`per_cell` items of every family, depth and question position, parallel topology, shortest first."""
    positions: tuple[QuestionPosition, ...] = ("last", "first")
    graded = []
    for family, depths in DEPTHS.items():
        for depth in depths:
            for position in positions:
                for seed in range(per_cell):
                    item = make_item(
                        family=family, depth=depth, seed=seed, split=split, question_position=position, names=names
                    )
                    graded.append(Graded((family, depth, position), *encoder.item(item)))
    return sorted(graded, key=lambda g: len(g.prompt))


def graded_roles(encoder: Encoder, per_cell: int, sizes: tuple[int, ...] = (8, 16, 28)) -> list[Graded]:
    """The demo's agents on held-out documents, each after what the others should have said; the cell names its size."""
    graded = []
    for size in sizes:
        for seed in range(per_cell):
            case = demo_case(seed, sentences=size, conflict=seed % 3 > 0)
            reports = [Message(role="user", name=a.name, content=a.expected) for a in case.researchers]
            critique = Message(role="user", name="critic", content=case.critic.expected)
            threads = [(case.researchers[seed % 3], []), (case.critic, reports)]
            threads += [(case.analyst, reports), (case.writer, [*reports, critique])]
            for agent, heard in threads:
                system, task = Message(role="system", content=agent.system), Message(role="user", content=agent.task)
                prompt = encoder.prompt([system, *heard, task]) + encoder.generation_prompt()
                cell = (agent.name.split("_")[0], size, "role")
                graded.append(Graded(cell, prompt, encoder.reply(agent.expected)[0]))
    return graded


@torch.no_grad()
def accuracy(
    model: Decoder, graded: Sequence[Graded], device: str, dtype: torch.dtype, rows: int = 64
) -> dict[tuple[str, int, str], float]:
    """The share of right replies in each cell."""
    hits: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
    for start in range(0, len(graded), rows):
        part = graded[start : start + rows]
        longest = -(-max(len(g.prompt) + len(g.reply) for g in part) // 64) * 64
        ids = torch.zeros(len(part), longest, dtype=torch.int64)
        for i, g in enumerate(part):
            ids[i, : len(g.prompt) + len(g.reply)] = torch.tensor(g.prompt + g.reply)
        best = model(ids.to(device), dtype).argmax(-1).cpu()
        for i, g in enumerate(part):
            a = len(g.prompt)
            said = best[i, a - 1 : a - 1 + len(g.reply)]
            hits[g.cell].append(bool((said == torch.tensor(g.reply)).all()))
    return {cell: sum(values) / len(values) for cell, values in hits.items()}


def lines(cells: dict[tuple[str, int, str], float]) -> list[str]:
    """A compact table: for each family, percent by depth with the question last and first."""
    table = []
    for family, depths in DEPTHS.items():
        halves = [
            " ".join(f"{100 * cells[family, depth, position]:3.0f}" for depth in depths)
            for position in ("last", "first")
        ]
        table.append(f"{family:13s} last {halves[0]:20s} first {halves[1]}")
    roles = sorted(cell for cell in cells if cell[2] == "role")
    return table + [f"{cell[0]:13s} {cell[1]:3d} sentences {100 * cells[cell]:3.0f}" for cell in roles]
