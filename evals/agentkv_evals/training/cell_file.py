"""Cells of an evaluation on disk, written after every cell: an interrupted run keeps what it has and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from agentkv_evals.training.cell import Cell, Place


class OtherSettings(ValueError):
    """The file holds cells of another model, of other worlds or of other seeds."""


class CellFile:
    """The cells measured so far under `settings`. With `path` None they are kept in memory alone."""

    def __init__(self, path: Path | None, settings: dict[str, object], machine: dict[str, object]) -> None:
        """Read what an earlier run left in `path`.

        Raises:
            OtherSettings: the file was written under other settings.
        """
        self._path, self._settings, self._machine = path, settings, machine
        self._cells: dict[Place, Cell] = {}
        if path is not None and path.exists():
            content = json.loads(path.read_text())
            if any(content.get(name) != value for name, value in settings.items()):
                raise OtherSettings(f"{path} holds cells of other settings than {settings}: give another file")
            self._cells = {cell.place: cell for cell in (Cell.from_json(entry) for entry in content["cells"])}

    def has(self, place: Place, items: int, careless: bool) -> bool:
        """Whether the cell is there with as many items, and with careless reuse where that is wanted."""
        cell = self._cells.get(place)
        return cell is not None and cell.items == items and (cell.careless is not None or not careless)

    def add(self, cell: Cell) -> None:
        """Keep a cell (an older one of the same place gives way) and write the file anew, at once or not at all."""
        self._cells[cell.place] = cell
        if self._path is None:
            return
        content = {**self._settings, **self._machine, "cells": [c.to_json() for c in self._cells.values()]}
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(content, indent=1) + "\n")
        beside.replace(self._path)

    def of(self, places: Iterable[Place]) -> list[Cell]:
        """The cells of those places that are there, in the places' order."""
        return [self._cells[place] for place in places if place in self._cells]
