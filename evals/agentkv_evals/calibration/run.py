"""`agentkv calibrate`, once its options are read: measure, fit, judge, write."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError
from agentkv.screening.calibration import Calibration, fingerprint
from agentkv_evals.accuracy.run import measure
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.calibration.fit import TARGETS, Check, curves_of, halves, rule_of
from agentkv_evals.comparison.show import figures_table

RULES = ("reading_change", "query_attention", "value_deviation", "propagated_attention")
"""Rules that say what they leave, and are calibrated unless others are named."""

RATIOS = "0.02,0.05,0.1,0.2,0.35,0.5,0.7,0.9"

LEGEND = (
    "Fitted to every other family (or item), judged by the others. known: prompts with an estimate; covered: of these, "
    "those whose KL is at most the estimate; rank: Spearman's correlation of what is left and KL; at each target: "
    "plans accepted / of these, above the target in truth."
)


def run_calibration(settings: Settings, file: Path, *, quantile: float, console: Console) -> Calibration:
    """Measure what is not measured yet, fit, judge, and write the calibration.

    Raises:
        AgentKVError, EngineError: see `run_accuracy`; or too little was measured.
    """
    if not file.parent.is_dir():
        raise ConfigError(f"can't write {file}: make the folder {file.parent} first")
    rows = measure(settings, console)
    fitted, judged = halves(rows)
    try:
        curves = curves_of(fitted, quantile=quantile)
    except ValueError as error:
        raise ConfigError(f"can't calibrate: {error}. Raise --items, or give more families.") from None
    checks = {
        rule: Check.of(curve, [row for row in judged if rule_of(row) == rule])
        for rule, curve in curves.items()
        if any(rule_of(row) == rule for row in judged)
    }
    if not checks:
        raise ConfigError(
            "nothing to judge by was measured, or no rule says what it leaves: raise --items, or name another"
        )
    measured = {
        "date": datetime.now(UTC).date().isoformat(),
        "run": rows[0].run,
        "fitted": sorted({row.family for row in fitted}),
        "judged": sorted({row.family for row in judged}),
        "checks": {rule: check.as_dict() for rule, check in checks.items()},
    }
    calibration = Calibration(
        model=fingerprint(settings.model), curves=curves, trace_layers=settings.trace_layers, measured=measured
    )
    calibration.save(file)
    console.print(LEGEND, style="dim")
    console.print(_table(checks))
    console.print(f"Calibration: {file}; agentkv serve --calibration {file} --target-kl NATS", soft_wrap=True)
    return calibration


def _table(checks: Mapping[str, Check]) -> Table:
    targets = [f"KL {target:g}" for target in TARGETS]
    table = figures_table("rule", ["prompts", "known", "covered", "rank", *targets])
    for rule, check in checks.items():
        pairs = zip(check.accepted, check.false_safe, strict=True)
        table.add_row(
            rule,
            str(check.prompts),
            f"{check.known:.0%}",
            _percent(check.covered),
            f"{check.rank_correlation:.2f}",
            *(f"{accepted:.0%} / {_percent(false)}" for accepted, false in pairs),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
