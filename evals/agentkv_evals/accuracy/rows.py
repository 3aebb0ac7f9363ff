"""Results: one JSON line for each item and arm, with all that the figure depends on, so that a run can go on later."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentkv.errors import ConfigError
from agentkv_evals.accuracy.provenance import is_same_run

_LENGTH_STEP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One item under one arm, beside full prefill of the same item in the same run.

    Attributes:
        family, depth, topology, question, seed: the item.
        hop: 1, or one more than the hop whose reply is read too.
        arm: the rule with its parameters, or `full`.
        right: whether greedy decoding gives the right reply, word for word.
        exact: whether it gives full prefill's reply.
        positions, mismatched, ties, kl_sum: see `Fidelity`; over full prefill's whole reply, forced.
        same_choice: family judge only: whether the candidate it chooses is full prefill's.
        prompt, reused: tokens of the prompt, and those of them that stand in reused spans, repaired or not.
        messages: number of reused spans.
        layers: of the model.
        probe, repair, screening, fresh: row-layers by kind; fresh is the pass that no reuse saves.
        seconds: to the first token.
        fallbacks: why reuse did not happen where it might have.
        run: what else the figure depends on; rows of another run are not mixed with these.
    """

    family: str
    depth: int
    topology: str
    question: str
    seed: int
    hop: int
    arm: str
    right: bool
    exact: bool
    positions: int
    mismatched: int
    ties: int
    kl_sum: float
    same_choice: bool | None
    prompt: int
    reused: int
    messages: int
    layers: int
    probe: int
    repair: int
    screening: int
    fresh: int
    seconds: float
    fallbacks: dict[str, int] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def item(self) -> str:
        """Names the item at its hop; the same for all arms."""
        return f"{self.family}/{self.depth}/{self.topology}/{self.question}/{self.seed}/{self.hop}"

    @property
    def length(self) -> str:
        """The mean length of the item's messages in tokens, as a range."""
        low = self.reused // self.messages // _LENGTH_STEP * _LENGTH_STEP
        return f"{low:03d}-{low + _LENGTH_STEP - 1:03d}"

    @property
    def work(self) -> float:
        """Row-layers of looking and repairing over the reused rows' row-layers."""
        return (self.probe + self.screening + self.repair) / max(self.reused * self.layers, 1)


class RowFile:
    """Rows on disk, appended as they come.

    Args:
        path: JSON lines; made when the first row comes.
        run: only rows of this very run are read and count as done.

    Raises:
        ConfigError: the file holds something else.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self._path = path
        self.run = run
        self.rows = [row for row in _read(path) if is_same_run(row.run, run)]

    @property
    def done(self) -> set[tuple[str, str]]:
        """Item and arm of the rows that there are."""
        return {(row.item, row.arm) for row in self.rows}

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows that are not there yet; each is on disk when this returns."""
        done = self.done
        new = [row for row in rows if (row.item, row.arm) not in done]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in new)
        self.rows += new


def _read(path: Path) -> list[Row]:
    """The rows of a file. A last line without its end was cut off by a crash: it is taken away and made anew."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole, newline, _ = text.rpartition("\n")
    if whole + newline != text:
        path.write_text(whole + newline, encoding="utf-8")
    try:
        return [Row(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} holds a line that is no result of this version: {error}. Give another --out, or move the file."
        ) from error
