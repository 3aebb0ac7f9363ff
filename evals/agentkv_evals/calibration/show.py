"""Calibrations on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from agentkv_evals.calibration.fit import TARGETS, Check
from agentkv_evals.calibration.targets import Kept
from agentkv_evals.comparison.show import figures_table, percent, small

CHECK_LEGEND = (
    "known: prompts with an estimate; covered: of these, those whose KL is at most the estimate; over: by how much the "
    "others are above it, median / largest, in nats; rank: Spearman's correlation of what is left and KL, over all / "
    "at one ratio; at each target: plans accepted / of these, above the target in truth."
)

TARGETS_LEGEND = (
    "above: chats whose KL is above the target; same: replies that are full prefill's; work: row-layers of looking and "
    "repairs over those of the reused rows; full: chats that were repaired in full."
)

_LINES = ("prompts", "known", "covered", "over", "rank", *(f"KL {target:g}" for target in TARGETS))


def checks_table(checks: Mapping[str, Check]) -> Table:
    """How well each rule's curve says the error of prompts that it was not fitted to, a column a rule."""
    table = figures_table("", list(checks))
    columns = [list(_lines(check)) for check in checks.values()]
    for line, *figures in zip(_LINES, *columns, strict=True):
        table.add_row(line, *figures)
    return table


def _lines(check: Check) -> Iterator[str]:
    yield from (str(check.prompts), f"{check.known:.1%}", _percent(check.covered))
    yield "-" if check.over is None else " / ".join(map(small, check.over))
    yield f"{check.rank_correlation:.2f} / {check.rank_at_one_ratio:.2f}"
    for accepted, above in zip(check.accepted, check.false_safe, strict=True):
        yield f"{accepted:.1%} / {_percent(above)}"


def targets_tables(kept: Sequence[Kept]) -> tuple[Table, Table]:
    """The KL that chats get at each target, and what it costs."""
    errors = figures_table("KL at target", ["mean", "median", "P90", "largest", "above"])
    costs = figures_table("at target", ["same", "top-1", "right", "work", "full"])
    for each in kept:
        name = f"{each.rule} to {each.target:g}"
        of_kl = (each.kl_mean, each.kl_median, each.kl_p90, each.kl_largest)
        errors.add_row(name, *map(small, of_kl), f"{each.above:.1%}")
        shares = (percent(each.same), percent(each.agreement), _percent(each.right))
        costs.add_row(name, *shares, f"{each.work:.1%}", f"{each.full:.1%}")
    return errors, costs


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
