"""`agentkv calibrate`, once its options are read: measure, fit, judge, write."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError
from agentkv.screening.calibration import Calibration, Curve, fingerprint
from agentkv.screening.selectors.registry import parse_selector
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.run import measure
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.calibration.break_even import engine_for, measure_break_even
from agentkv_evals.calibration.fit import Check, curves_of, halves, rule_of
from agentkv_evals.calibration.show import CHECK_LEGEND, checks_table

RULES = ("reading_change", "query_attention", "value_deviation", "propagated_attention")
"""Rules that say what they leave, and are calibrated unless others are named."""

RATIOS = "0.02,0.05,0.1,0.2,0.35,0.5,0.7,0.9"


def run_calibration(settings: Settings, file: Path, *, quantile: float, console: Console) -> Calibration:
    """Measure what is not measured yet, fit, judge, and write the calibration.

    A curve that is fitted to one half of the items is judged by the other; the one that is written is fitted to all.

    Raises:
        AgentKVError, EngineError: see `run_accuracy`; or too little was measured.
    """
    if not file.parent.is_dir():
        raise ConfigError(f"can't write {file}: make the folder {file.parent} first")
    rows = measure(settings, console)
    fitted, judged = halves(rows)
    checks = _judge(_fit(fitted, quantile), judged)
    engine = engine_for(settings)
    break_even = measure_break_even(engine, parse_selector(ServiceConfig.model_fields["selector"].default))
    measured = {
        "date": datetime.now(UTC).date().isoformat(),
        "run": rows[0].run,
        "fitted": sorted({row.family for row in fitted}),
        "judged": sorted({row.family for row in judged}),
        "checks": {rule: check.as_dict() for rule, check in checks.items()},
        "break_even": break_even.as_dict(),
    }
    calibration = Calibration(
        model=fingerprint(settings.model),
        curves=_fit([*fitted, *judged], quantile),
        trace_layers=settings.trace_layers,
        break_even={engine.device_type: break_even.shortest},
        measured=measured,
    )
    calibration.save(file)
    console.print("Fitted to every other family (or item), judged by the others;", CHECK_LEGEND, style="dim")
    console.print(checks_table(checks))
    console.print(f"{break_even.rule} is faster than full prefill from {break_even.shortest} reused tokens on.")
    console.print(f"Calibration: {file}; agentkv serve --calibration {file} --target-kl NATS", soft_wrap=True)
    return calibration


def _fit(rows: Sequence[Row], quantile: float) -> dict[str, Curve]:
    try:
        return curves_of(rows, quantile=quantile)
    except ValueError as error:
        raise ConfigError(f"can't calibrate: {error}. Raise --items, or give more families.") from None


def _judge(curves: dict[str, Curve], rows: Sequence[Row]) -> dict[str, Check]:
    by_rule = {rule: [row for row in rows if rule_of(row) == rule] for rule in curves}
    checks = {rule: Check.of(curves[rule], members) for rule, members in by_rule.items() if members}
    if not checks:
        raise ConfigError(
            "nothing to judge by was measured, or no rule says what it leaves: raise --items, or name another"
        )
    return checks
