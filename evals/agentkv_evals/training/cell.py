"""A cell of the accuracy tables: the right replies of one family, depth, position, topology and kind of names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from agentkv_evals.worlds.item import Names, QuestionPosition, Topology


@dataclass(frozen=True, slots=True)
class Place:
    """Which cell it is."""

    family: str
    depth: int
    question_position: QuestionPosition
    topology: Topology
    names: Names


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Right replies among `items`; `careless` is None where reuse was not measured."""

    place: Place
    items: int
    full: int
    careless: int | None

    def to_json(self) -> dict[str, object]:
        """One flat object."""
        return {**asdict(self.place), "items": self.items, "full": self.full, "careless": self.careless}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Cell:
        """What `to_json` gave."""
        measured = {name: entry[name] for name in ("items", "full", "careless")}
        return cls(place=Place(**{name: entry[name] for name in entry if name not in measured}), **measured)

    def percent(self) -> str:
        """`full` or `full/careless`, in whole percent."""
        full = f"{100 * self.full / self.items:.0f}"
        return full if self.careless is None else f"{full}/{100 * self.careless / self.items:.0f}"
