"""`agentkv eval accuracy`, once its options are read: load, ask, write, print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from agentkv.embedded import model_directory
from agentkv.errors import ConfigError
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.model_config import ModelConfig
from agentkv_evals.accuracy.arms import FULL
from agentkv_evals.accuracy.cases import Cell, case_id, make_case
from agentkv_evals.accuracy.drive import Driver
from agentkv_evals.accuracy.grade import Ask, Grader
from agentkv_evals.accuracy.provenance import provenance
from agentkv_evals.accuracy.report import SPLITS, html
from agentkv_evals.accuracy.rows import Row, RowFile
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.show import ANSWERS, COSTS, LEGEND, answers, arms_table, costs, progress_bar, split_table
from agentkv_evals.accuracy.summary import split, summarise
from agentkv_evals.training.encode import Encoder

ROWS_FILE, REPORT_FILE = "rows.jsonl", "report.html"

_REQUESTS_AN_ITEM = 4
"""So many requests at once take in one more item: decodes of several items share a step, and few authors are kept."""


def run_accuracy(settings: Settings, console: Console) -> list[Row]:
    """Measure what is not measured yet, and print the comparison; returns the rows that were asked for.

    Raises:
        AgentKVError: what is wrong with a setting, the model or an earlier result.
        EngineError: the engine refuses the model or a request.
    """
    tokenizer = _load_tokenizer(settings.model)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"can't write to --out {settings.out}: {error}. Give a folder.") from error
    run = provenance(settings.model, device=settings.device, batch=settings.batch)
    results = RowFile(settings.out / ROWS_FILE, run)
    _measure(settings, results, Encoder(tokenizer), tokenizer, console)
    names = {FULL, *(arm.name for arm in settings.arms)}
    items = {each for seeded in settings.seeded for each in _case_ids(settings, *seeded)}
    rows = [row for row in results.rows if row.item in items and row.arm in names]
    _print(rows, console)
    report = settings.out / REPORT_FILE
    report.write_text(html(rows), encoding="utf-8")
    console.print(f"Rows: {settings.out / ROWS_FILE}; report: {report}", soft_wrap=True)
    return rows


def _measure(settings: Settings, results: RowFile, encoder: Encoder, tokenizer: Tokenizer, console: Console) -> None:
    driver = Driver(_load_engine(settings), settings.batch)
    digits = frozenset(tokenizer.encode(digit, add_special_tokens=False).ids[0] for digit in "0123456789")
    grader = Grader(driver, digits=digits, run=results.run)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=len(settings.seeded))
        for asks in _groups(settings, results, encoder):
            progress.update(task, description=asks[0].case.cell.family)
            results.append(grader.grade([ask for ask in asks if ask.arms], settings.hops))
            progress.advance(task, len(asks))


def _groups(settings: Settings, results: RowFile, encoder: Encoder) -> Iterator[list[Ask]]:
    """The items, some at a time, each with the arms that are missing."""
    size = max(settings.batch // _REQUESTS_AN_ITEM, 1)
    seeded, done = settings.seeded, results.done
    for first in range(0, len(seeded), size):
        yield [
            Ask(
                case=make_case(cell, seed, encoder),
                arms=tuple(
                    arm
                    for arm in settings.arms
                    if any((each, arm.name) not in done for each in _case_ids(settings, cell, seed))
                ),
            )
            for cell, seed in seeded[first : first + size]
        ]


def _case_ids(settings: Settings, cell: Cell, seed: int) -> list[str]:
    """The item at every hop."""
    return [case_id(cell, seed, hop) for hop in range(1, settings.hops + 1)]


def _load_engine(settings: Settings) -> Engine:
    """The engine, with the depth 1 beside full depth: a rule that looks at layer 1 is charged for one layer only."""
    shape = ModelConfig.from_directory(settings.model)
    config = EngineConfig(
        kv_memory=settings.kv_memory,
        max_sequences=settings.batch,
        device=settings.device,
        levels=tuple(sorted({1, shape.num_layers})),
    )
    return Engine.from_directory(settings.model, config)


def _load_tokenizer(model: Path) -> Tokenizer:
    path = model / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{model} holds no tokenizer.json: give a Hugging Face model directory")
    tokenizer = Tokenizer.from_file(str(path))
    ours = Tokenizer.from_file(str(model_directory() / "tokenizer.json"))
    if tokenizer.get_vocab() != ours.get_vocab():
        raise ConfigError(
            f"{model} has another tokenizer than the repository's model: the task `worlds` is written for that one"
        )
    return tokenizer


def _print(rows: Sequence[Row], console: Console) -> None:
    console.print(LEGEND, style="dim")
    summaries = summarise(rows)
    console.print(arms_table(summaries, ANSWERS, answers), arms_table(summaries, COSTS, costs))
    for attribute in SPLITS:
        if len(split(rows, attribute)) > 1:
            console.print(split_table(rows, attribute))
