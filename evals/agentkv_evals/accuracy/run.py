"""`agentkv eval accuracy`, once its options are read: load, ask, write, print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from agentkv.errors import ConfigError, ModelError
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import CheckpointError
from agentkv_engine.model.model_config import ModelConfig
from agentkv_evals.accuracy.arms import FULL
from agentkv_evals.accuracy.cases import item_id
from agentkv_evals.accuracy.drive import Driver
from agentkv_evals.accuracy.grade import Grader
from agentkv_evals.accuracy.play import Ask
from agentkv_evals.accuracy.provenance import provenance
from agentkv_evals.accuracy.report import SPLITS, html
from agentkv_evals.accuracy.rows import Row, RowFile
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.show import ANSWERS, COSTS, LEGEND, answers, arms_table, costs, progress_bar, split_table
from agentkv_evals.accuracy.summary import split, summarise
from agentkv_evals.accuracy.tasks.task import Task

ROWS_FILE, REPORT_FILE = "rows.jsonl", "report.html"

_REQUESTS_AN_ITEM = 4
"""So many requests at once take in one more item: decodes of several items share a step, and few authors are kept."""


def run_accuracy(settings: Settings, console: Console) -> list[Row]:
    """Measure what is not measured yet, and print the comparison; returns the rows that were asked for.

    Raises:
        AgentKVError: what is wrong with a setting, the model, the data or an earlier result.
        EngineError: the engine refuses the model or a request.
    """
    rows = measure(settings, console)
    _print(rows, console)
    report = settings.out / REPORT_FILE
    report.write_text(html(rows), encoding="utf-8")
    console.print(f"Rows: {settings.out / ROWS_FILE}; report: {report}", soft_wrap=True)
    return rows


def measure(settings: Settings, console: Console) -> list[Row]:
    """Rows of full prefill and the settings' arms on the settings' items; what a file holds of them is not made anew.

    Raises:
        AgentKVError, EngineError: see `run_accuracy`.
    """
    task = settings.task.open(settings.model)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"can't write to --out {settings.out}: {error}. Give a folder.") from error
    run = provenance(settings.model, task, device=settings.device, batch=settings.batch)
    results = RowFile(settings.out / ROWS_FILE, run)
    grader = Grader(Driver(_load_engine(settings), settings.batch), task, run=run)
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=len(task.items))
        for asks in _groups(settings, task, results):
            progress.update(bar, description=asks[0].cell.family)
            results.append(grader.grade([ask for ask in asks if ask.arms]))
            progress.advance(bar, len(asks))
    names = {FULL, *(arm.name for arm in settings.arms)}
    items = {item_id(cell, seed) for cell, seed in task.items}
    rows = [row for row in results.rows if row.item in items and row.arm in names]
    if not rows:
        raise ConfigError(f"the task {task.name} has no item that fits: raise --length, or give other items")
    return rows


def _groups(settings: Settings, task: Task, results: RowFile) -> Iterator[list[Ask]]:
    """The items, some at a time, each with the arms that are missing."""
    size = max(settings.batch // _REQUESTS_AN_ITEM, 1)
    done = results.done
    for first in range(0, len(task.items), size):
        yield [
            Ask(
                cell=cell,
                seed=seed,
                arms=tuple(arm for arm in settings.arms if (item_id(cell, seed), arm.name) not in done),
            )
            for cell, seed in task.items[first : first + size]
        ]


def _load_engine(settings: Settings) -> Engine:
    """The engine, with the depth 1 beside full depth: a rule that looks at layer 1 is charged for one layer only."""
    try:
        shape = ModelConfig.from_directory(settings.model)
        config = EngineConfig(
            kv_memory=settings.kv_memory,
            max_sequences=settings.batch,
            device=settings.device,
            levels=tuple(sorted({1, shape.num_layers})),
            trace_layers=tuple(range(1, 1 + settings.trace_layers)),
        )
        return Engine.from_directory(settings.model, config)
    except CheckpointError as error:
        raise ModelError(str(error)) from error


def _print(rows: Sequence[Row], console: Console) -> None:
    console.print(LEGEND, style="dim")
    summaries = summarise(rows)
    console.print(arms_table(summaries, ANSWERS, answers), arms_table(summaries, COSTS, costs))
    for attribute in SPLITS:
        if len(split(rows, attribute)) > 1:
            console.print(split_table(rows, attribute))
