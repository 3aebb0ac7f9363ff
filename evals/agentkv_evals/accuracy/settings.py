"""What a comparison measures, from the options of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentkv.config import ServiceConfig
from agentkv.embedded import model_directory
from agentkv.errors import InvalidRequest
from agentkv_evals.accuracy.arms import DEFAULT_RULES, Arm, make_arms
from agentkv_evals.accuracy.cases import Cell, cells
from agentkv_evals.accuracy.options import chosen
from agentkv_evals.worlds.build import DEPTHS
from agentkv_evals.worlds.item import QuestionPosition, Topology

TOPOLOGIES: tuple[Topology, ...] = ("parallel", "chain", "debate")
QUESTIONS: tuple[QuestionPosition, ...] = ("last", "first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure.

    Attributes:
        model: directory of a model that reads the worlds' chat template.
        cells: kinds of items.
        items: of each cell.
        hops: how often a reply is passed on and the same asked again, the first time counted.
        first_seed: of a cell's items; a claim needs seeds that nobody looked at.
        arms: beside full prefill.
        device: where the model runs.
        batch: most requests at once.
        kv_memory: bytes of KV.
        out: folder of the results, made if need be; a run that was broken off goes on there.
    """

    model: Path
    cells: Sequence[Cell]
    items: int
    hops: int
    first_seed: int
    arms: Sequence[Arm]
    device: str
    batch: int
    kv_memory: int
    out: Path

    @property
    def seeded(self) -> list[tuple[Cell, int]]:
        """Cell and seed of every item."""
        return [(cell, self.first_seed + n) for cell in self.cells for n in range(self.items)]

    @classmethod
    def of(
        cls,
        *,
        model: Path | None = None,
        rules: Iterable[str] = (),
        peers: bool = True,
        families: str | None = None,
        depths: str | None = None,
        topology: str = "parallel",
        question: str = "last",
        items: int = 4,
        hops: int = 1,
        first_seed: int = 200_000,
        device: str | None = None,
        batch: int = 16,
        kv_memory: str = "2GiB",
        out: Path,
    ) -> Settings:
        """The options of `agentkv eval accuracy`.

        Raises:
            AgentKVError: an option that can't be used; the message says what can.
        """
        arms = make_arms([*(DEFAULT_RULES if peers else ()), *rules])
        if not arms:
            raise InvalidRequest("no rule to compare: give --selector, or leave --no-peers out", param="selector")
        service = ServiceConfig.from_values(kv_memory=kv_memory, device=device, max_sequences=batch)
        return cls(
            model=model or model_directory(),
            cells=_kinds(families, depths, topology, question),
            items=items,
            hops=hops,
            first_seed=first_seed,
            arms=arms,
            device=service.device,
            batch=batch,
            kv_memory=int(service.kv_memory),
            out=out,
        )


def _kinds(families: str | None, depths: str | None, topology: str, question: str) -> list[Cell]:
    every_depth = sorted({depth for each in DEPTHS.values() for depth in each})
    kinds = cells(
        chosen(families, list(DEPTHS), "--families"),
        chosen(depths, every_depth, "--depths"),
        chosen(topology, TOPOLOGIES, "--topology"),
        chosen(question, QUESTIONS, "--question"),
    )
    if not kinds:
        raise InvalidRequest(f"no item of {families} has depth {depths}: the families' depths are {DEPTHS}")
    return kinds
