"""Results: one JSON line for each item and arm, with all that the figure depends on, so that a run can go on later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentkv.errors import ConfigError
from agentkv_evals.accuracy.provenance import is_same_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One item under one arm, beside full prefill of the same item in the same run.

    Attributes:
        item: names the item.
        family, depth, topology, question, seed: the item; where several agents are asked, `family` is the agent.
        step, steps: which of the item's prompts, and how many there are.
        hop: how many replies stand between this one and the first, at most, itself counted.
        arm: the rule with its parameters, or `full`.
        right: whether the reply is right; None where nobody can say.
        exact: whether its best token is full prefill's at every position: it decodes the same reply.
        positions, mismatched, ties, kl_sum: see `Fidelity`; over full prefill's whole reply, forced.
        same_choice: whether it chooses what full prefill chooses; None where there is nothing to choose.
        prompt, prefix, reused: tokens of the prompt, those read as an exact prefix, and those that stand in reused
            spans, repaired or not.
        messages: number of reused spans.
        layers: of the model.
        probe, repair, screening, fresh: row-layers by kind; fresh is the pass that no reuse saves.
        left: what the plan left unrepaired, in the rule's own units; None where it does not say.
        seconds: to the first token.
        fallbacks: why reuse did not happen where it might have.
        run: what else the figure depends on; rows of another run are not mixed with these.
    """

    item: str
    family: str
    depth: int
    topology: str
    question: str
    seed: int
    step: int
    steps: int
    hop: int
    arm: str
    right: bool | None
    exact: bool
    positions: int
    mismatched: int
    ties: int
    kl_sum: float
    same_choice: bool | None
    prompt: int
    prefix: int
    reused: int
    messages: int
    layers: int
    probe: int
    repair: int
    screening: int
    fresh: int
    left: float | None
    seconds: float
    fallbacks: dict[str, int] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """Names the prompt; the same for all arms."""
        return f"{self.item}/{self.step}"

    @property
    def length(self) -> str:
        """The mean length of the prompt's messages in tokens, as a range that doubles; `none` where there are none."""
        if not self.messages:
            return "none"
        low = 1 << (max(self.reused // self.messages, 1).bit_length() - 1)
        return f"{low:05d}-{2 * low - 1:05d}"

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
        """Item and arm of the rows that there are, all steps of the item."""
        found = Counter((row.item, row.arm) for row in self.rows)
        return {(row.item, row.arm) for row in self.rows if found[row.item, row.arm] == row.steps}

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows that are not there yet; each is on disk when this returns."""
        there = {(row.case, row.arm) for row in self.rows}
        new = [row for row in rows if (row.case, row.arm) not in there]
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
