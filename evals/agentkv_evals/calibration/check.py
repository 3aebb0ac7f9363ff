"""`agentkv calibrate --check`: a calibration on items that it has not seen, and what chats get at several targets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console

from agentkv.errors import ConfigError
from agentkv.screening.calibration import Calibration
from agentkv.screening.selectors.budget import BudgetedSelector
from agentkv.screening.selectors.until import Until
from agentkv_evals.accuracy.arms import FULL, Arm
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.run import measure
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.summary import split
from agentkv_evals.calibration.fit import Check
from agentkv_evals.calibration.plot import estimates_and_targets
from agentkv_evals.calibration.show import CHECK_LEGEND, TARGETS_LEGEND, checks_table, targets_tables
from agentkv_evals.calibration.targets import Kept

TARGETS = (0.01, 0.05, 0.3)
"""Targets that are tried unless others are named, in nats."""

CHECK_FILE, PLOT_FILE = "check.json", "check.svg"

Aimed = Mapping[tuple[str, float], Sequence[Row]]
"""Rows of chats by rule and target."""


def run_check(settings: Settings, file: Path, *, targets: Sequence[float], console: Console) -> dict[str, Any]:
    """Measure what is not measured yet, judge, print, and write figures and a plot beside the rows.

    Raises:
        AgentKVError, EngineError: see `run_accuracy`; or there is no calibration of this model, or no curve.
    """
    calibration = Calibration.load(file, settings.model)
    swept = _with_curves(settings.arms, calibration)
    if not swept:
        raise ConfigError(f"{file} has no curve for these rules: name some of {', '.join(sorted(calibration.curves))}")
    aims = {(rule, target): _aimed(arms[0], target, calibration) for rule, arms in swept.items() for target in targets}
    every = [*(arm for arms in swept.values() for arm in arms), *aims.values()]
    traced = settings.trace_layers if calibration.trace_layers is None else calibration.trace_layers
    rows = measure(replace(settings, arms=every, trace_layers=traced), console)
    by_arm = split(rows, "arm")
    told = {rule: [row for arm in arms for row in by_arm[arm.name]] for rule, arms in swept.items()}
    return _report(
        settings.out, calibration, told, {key: by_arm[arm.name] for key, arm in aims.items()}, by_arm[FULL], console
    )


def _report(
    out: Path,
    calibration: Calibration,
    told: Mapping[str, Sequence[Row]],
    aimed: Aimed,
    full: Sequence[Row],
    console: Console,
) -> dict[str, Any]:
    """Judge, print, write."""
    known = {rule: [row for row in rows if row.left is not None] for rule, rows in told.items()}
    checks = {rule: Check.of(calibration.curves[rule], rows) for rule, rows in known.items() if rows}
    kept = [Kept.of(rule, target, rows, full) for (rule, target), rows in aimed.items()]
    result = {
        "calibration": _digest(calibration),
        "run": full[0].run,
        "seeds": sorted({row.seed for row in full}),
        "estimates": {rule: check.as_dict() for rule, check in checks.items()},
        "targets": [asdict(each) for each in kept],
    }
    (out / CHECK_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / PLOT_FILE).write_text(estimates_and_targets(calibration, known, aimed), encoding="utf-8")
    console.print(CHECK_LEGEND, style="dim")
    console.print(checks_table(checks))
    console.print(TARGETS_LEGEND, style="dim")
    console.print(*targets_tables(kept))
    console.print(f"Figures: {out / CHECK_FILE}; plot: {out / PLOT_FILE}", soft_wrap=True)
    return result


def _with_curves(arms: Iterable[Arm], calibration: Calibration) -> dict[str, list[Arm]]:
    """The arms whose rule has a curve, by rule."""
    by_rule: dict[str, list[Arm]] = {}
    for arm in arms:
        if (rule := arm.name.partition("(")[0]) in calibration.curves:
            by_rule.setdefault(rule, []).append(arm)
    return by_rule


def _aimed(arm: Arm, target: float, calibration: Calibration) -> Arm:
    """An arm that deepens the rule of this one, from its ratio on. Its rows are those of one calibration only."""
    assert arm.selector is not None
    inner: BudgetedSelector = arm.selector  # type: ignore[assignment] (every rule with a curve has a budget)
    until = Until(inner=inner, target=target, calibration=calibration)
    return Arm(name=f"{until.name}, {_digest(calibration)}", selector=until)


def _digest(calibration: Calibration) -> str:
    curves = {rule: asdict(curve) for rule, curve in sorted(calibration.curves.items())}
    return sha256(json.dumps(curves).encode()).hexdigest()[:8]
