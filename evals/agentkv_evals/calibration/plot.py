"""The plot of `agentkv calibrate --check`, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agentkv.screening.calibration import Calibration
from agentkv_evals.accuracy.plots import svg
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.calibration.fit import mean_kl

_LEAST = 1e-6
"""KL below this, 0 included, is drawn here: the axes are logarithmic."""


def estimates_and_targets(
    calibration: Calibration, told: Mapping[str, Sequence[Row]], aimed: Mapping[tuple[str, float], Sequence[Row]]
) -> str:
    """Left: each prompt's KL over its estimate, by rule. Right: how the prompts' KL is distributed at each target.

    Args:
        told: by rule, rows that say what they left.
        aimed: rows by rule and target.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for rule, rows in told.items():
        pairs = [(calibration.estimate(rule, row.left), mean_kl(row)) for row in rows]
        known = [(max(estimate, _LEAST), max(kl, _LEAST)) for estimate, kl in pairs if estimate is not None]
        left.plot(*zip(*known, strict=True), "o", label=rule, markersize=3, alpha=0.4)
    left.axline((_LEAST, _LEAST), (1, 1), color="grey", linewidth=0.8, linestyle="--")
    _label(left, "estimated KL (nats)", "KL from full prefill (nats)", xscale="log", yscale="log")
    for index, ((rule, target), rows) in enumerate(aimed.items()):
        ascending = sorted(max(mean_kl(row), _LEAST) for row in rows)
        shares = [(rank + 1) / len(rows) for rank in range(len(rows))]
        right.step(ascending, shares, where="post", label=f"{rule} to {target:g}", color=f"C{index % 10}")
        right.axvline(target, color=f"C{index % 10}", linewidth=0.8, linestyle=":")
    _label(right, "KL from full prefill (nats)", "share of chats at or below it", xscale="log")
    return svg(figure)


def _label(axes: Axes, x: str, y: str, *, xscale: str, yscale: str = "linear") -> None:
    axes.set(xlabel=x, ylabel=y, xscale=xscale, yscale=yscale)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
