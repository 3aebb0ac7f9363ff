"""Calibrations on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from agentkv_evals.calibration.fit import TARGETS, Check
from agentkv_evals.comparison.show import figures_table, small

CHECK_LEGEND = (
    "known: prompts with an estimate; covered: of these, those whose KL is at most the estimate; over: by how much the "
    "others are above it, median / largest, in nats; rank: Spearman's correlation of what is left and KL, over all / "
    "at one ratio; at each target: plans accepted / of these, above the target in truth."
)


def checks_table(checks: Mapping[str, Check]) -> Table:
    """How well each rule's curve says the error of prompts that it was not fitted to."""
    targets = [f"KL {target:g}" for target in TARGETS]
    table = figures_table("rule", ["prompts", "known", "covered", "over", "rank", *targets])
    for rule, check in checks.items():
        pairs = zip(check.accepted, check.false_safe, strict=True)
        table.add_row(
            rule,
            str(check.prompts),
            f"{check.known:.0%}",
            _percent(check.covered),
            "-" if check.over is None else " / ".join(map(small, check.over)),
            f"{check.rank_correlation:.2f} / {check.rank_at_one_ratio:.2f}",
            *(f"{accepted:.0%} / {_percent(false)}" for accepted, false in pairs),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
