"""The comparison on the terminal: a bar meanwhile, tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.summary import ArmSummary, split, summarise
from agentkv_evals.comparison.show import figures_table, percent, small

LEGEND = (
    "work: row-layers of probes, screening (look) and repairs over those of the reused rows; fresh: the pass that "
    "fresh rows need anyway, over the prompts' row-layers; prefix: tokens read as an exact prefix; "
    "right: replies that are right; loss: points of accuracy against full prefill, paired bootstrap 95%; "
    "same: replies that are full prefill's word for word; top-1, KL: over all positions of full prefill's reply, "
    "forced; judge: same candidate chosen; TTFT: full prefill's over the arm's, median (says something with --batch 1)."
)

ANSWERS = ("prompts", "work", "right", "loss", "same", "judge")
COSTS = ("top-1", "KL", "probe", "look", "repair", "fresh", "prefix", "TTFT")


def progress_bar(console: Console) -> Progress:
    """The bar; items are its unit."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("items"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def answers(each: ArmSummary) -> tuple[str, ...]:
    """What became of an arm's answers, under `ANSWERS`."""
    loss = each.loss
    return (
        str(each.items),
        "-" if each.work is None else f"{each.work:.1%}",
        "-" if each.accuracy is None else f"{each.accuracy:.1%}",
        "-" if loss is None else f"{100 * loss.mean:+.1f} [{100 * loss.low:+.1f},{100 * loss.high:+.1f}]",
        percent(each.exact),
        "-" if each.same_choice is None else percent(each.same_choice),
    )


def costs(each: ArmSummary) -> tuple[str, ...]:
    """An arm's distance from full prefill and the parts of its work, under `COSTS`."""
    return (
        percent(each.fidelity.agreement),
        small(each.fidelity.mean_kl),
        *(f"{part:.1%}" for part in (each.probe, each.screening, each.repair, each.fresh, each.prefix)),
        f"{each.ttft_ratio:.2f}x",
    )


def arms_table(
    summaries: Iterable[ArmSummary], headings: Sequence[str], figures: Callable[[ArmSummary], tuple[str, ...]]
) -> Table:
    """One row an arm."""
    result = _table("arm", headings)
    for each in summaries:
        result.add_row(each.arm, *figures(each))
    return result


def split_table(rows: Iterable[Row], attribute: str) -> Table:
    """Share of replies that are full prefill's, by arm and by family, depth, topology or question position."""
    parts = {name: {each.arm: each for each in summarise(part)} for name, part in split(rows, attribute).items()}
    arms = list(dict.fromkeys(arm for part in parts.values() for arm in part))
    result = _table(f"same, by {attribute}", list(parts))
    for arm in arms:
        result.add_row(arm, *(f"{part[arm].exact:.0%}" if arm in part else "-" for part in parts.values()))
    return result


def _table(label: str, headings: Sequence[str]) -> Table:
    """An empty table in which long names of arms are folded, not figures."""
    table = figures_table(label, headings)
    table.columns[0].no_wrap = False
    table.columns[0].overflow = "fold"
    return table
