"""Faults planted in the engine and in rules, and a small slice of the accuracy suite that catches each.

Every check holds without the fault, first. The bounds are wide: a fault is off by powers of ten, or as is said.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from rich.console import Console

from agentkv.screening.selectors import reading_change
from agentkv.segment.unread import with_unread
from agentkv_engine.attention.sdpa import SdpaBackend
from agentkv_engine.model.rope import RotaryEmbedding
from agentkv_engine.runner.observer import LiveObservation
from agentkv_engine.scheduler.scheduler import Scheduler
from agentkv_evals.accuracy import run
from agentkv_evals.accuracy.cases import Author, Case, Cell, Message
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.tasks.sources import TaskName, TaskOptions
from agentkv_evals.accuracy.tasks.task import Task, TaskSource

CHAINS = TaskOptions(families="chain", depths="2", items=2)
LINKED = replace(CHAINS, topology="chain")
PLAIN = TaskOptions(name=TaskName.RULER, families="needle,words", items=2, length=256, reply_tokens=4)

Wrap = Callable[[TaskSource], TaskSource]


@pytest.fixture
def measure(tmp_path) -> Callable[..., dict[str, list[Row]]]:
    """Rows of each rule named, on the items of a task."""
    runs = count()

    def rows(
        task: TaskOptions, *rules: str, wrap: Wrap | None = None, model: Path | None = None
    ) -> dict[str, list[Row]]:
        out = tmp_path / str(next(runs))
        settings = Settings.of(model=model, task=task, rules=rules, peers=False, out=out)
        if wrap is not None:
            settings = replace(settings, task=wrap(settings.task))
        found = run.measure(settings, Console(file=io.StringIO()))
        return {arm: [row for row in found if row.arm == arm] for arm in {row.arm for row in found}}

    return rows


def mean_kl(rows: list[Row]) -> float:
    return sum(row.kl_sum for row in rows) / sum(row.positions for row in rows)


@dataclass(frozen=True)
class Changed(ABC):
    """A task whose cases are changed: its own source, and how."""

    source: TaskSource
    name: str = "changed"
    version: str = "changed-1"
    generates: bool = False

    def open(self, model: Path) -> Task:
        return replace(self, source=self.source.open(model))

    @property
    def items(self) -> list[tuple[Cell, int]]:
        return self.source.items

    def case(self, cell: Cell, seed: int, replies: tuple[tuple[int, ...], ...] = ()) -> Case | None:
        case = self.source.case(cell, seed, replies)
        return None if case is None else self.changed(case)

    @abstractmethod
    def changed(self, case: Case) -> Case:
        """The case as it is asked."""

    def is_right(self, case: Case, reply: tuple[int, ...], /) -> bool | None:
        return None

    def same_choice(self, *_case_and_replies: object) -> bool | None:
        return None


class NothingSeen(Changed):
    """It is said of every author that it had seen nothing, whatever it had seen."""

    def changed(self, case: Case) -> Case:
        return replace(case, messages=tuple(replace(each, unseen=((0, each.start),)) for each in case.messages))


class AskedElsewhere(Changed):
    """What follows the messages, up to the prompt's last row, was asked of an agent before, behind other messages."""

    def changed(self, case: Case) -> Case:
        other = self.source.case(case.cell, case.seed + 1000)
        start = case.messages[-1].start + len(case.messages[-1].content)
        author = Author(source="before", context=other.prompt[: other.messages[-1].start], content=case.prompt[start:])
        message = Message(
            source="before",
            content=author.content,
            start=start,
            unseen=((0, start),),
            num_gone=len(author.context),
        )
        return replace(case, authors=(author,), messages=(message,))


def test_a_bottom_right_mask_is_caught(measure, monkeypatch, small_model) -> None:
    """Row numbers, not positions, decide what a repaired row sees: repairing four rows of five helps little."""

    def remaining() -> float:
        rows = measure(PLAIN, "repair_none", "random_rows(0.8)", model=small_model("qwen2"))
        return mean_kl(rows["random_rows(0.8, 0)"]) / mean_kl(rows["repair_none"])

    assert remaining() < 0.35

    def bottom_right(self: SdpaBackend, sequence) -> torch.Tensor:
        rows, keys = len(sequence.positions), len(sequence.key_positions)
        return torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)

    monkeypatch.setattr(SdpaBackend, "_mask", bottom_right)
    assert remaining() > 0.45


def test_a_dropped_offset_is_caught(measure, monkeypatch) -> None:
    """Keys read as if they had been computed where the reader reads them: no repair of a few makes up for it."""
    assert mean_kl(measure(CHAINS, "oracle(0.2)")["oracle(0.2)"]) < 1e-2
    by_offsets = RotaryEmbedding.by_offsets
    monkeypatch.setattr(RotaryEmbedding, "by_offsets", lambda self, offsets_N: by_offsets(self, 0 * offsets_N))
    assert mean_kl(measure(CHAINS, "oracle(0.2)")["oracle(0.2)"]) > 3e-2


def test_a_question_that_is_only_reused_is_caught(measure, monkeypatch, small_model) -> None:
    """Its rows, the prompt's last one among them, are computed, and then everybody goes on reading the old ones."""

    def error() -> float:
        rows = measure(PLAIN, "repair_all", wrap=AskedElsewhere, model=small_model("qwen2"))
        return mean_kl(rows["repair_all"])

    assert error() < 1e-6
    assign = Scheduler._assign_slots

    def reuse_question(self: Scheduler, seq, rows) -> bool:
        if not assign(self, seq, rows):
            return False
        for span in seq.held.view.spans:
            inside = rows.positions[(rows.positions >= span.start) & (rows.positions < span.end)]
            shared_KN = self._admission._residents.keys_for(span).slots_KN[:, inside - span.start]
            seq.held.table.restore(inside, shared_KN)
        return True

    monkeypatch.setattr(Scheduler, "_assign_slots", reuse_question)
    assert error() > 1e-4


def test_attention_read_from_the_wrong_rows_is_caught(measure, monkeypatch) -> None:
    """Who reads what is what the oracle repairs by."""
    assert mean_kl(measure(CHAINS, "oracle(0.1)")["oracle(0.1)"]) < 1e-2
    queries = LiveObservation._queries

    def of_others(self: LiveObservation, layer: int, asked: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for rows, q_RHD in queries(self, layer, asked):
            yield rows, q_RHD.flip(0)

    monkeypatch.setattr(LiveObservation, "_queries", of_others)
    assert mean_kl(measure(CHAINS, "oracle(0.1)")["oracle(0.1)"]) > 3e-2


def test_what_the_author_had_seen_counted_as_new_is_caught(measure, monkeypatch) -> None:
    """Where authors saw what went before, our rule finds less to repair than where it is told that they did not."""

    def left(wrap: Wrap | None = None) -> float:
        return mean(row.left for row in measure(LINKED, "reading_change(0.1)", wrap=wrap)["reading_change(0.1)"])

    nothing_seen = left(NothingSeen)
    assert left() < 0.85 * nothing_seen
    unread = reading_change.unread_messages

    def all_unread(view):
        spans = [replace(span, unseen=((0, span.start),)) for span in view.spans]
        return unread(replace(view, spans=with_unread(spans)))

    monkeypatch.setattr(reading_change, "unread_messages", all_unread)
    assert left() > 0.95 * nothing_seen
