"""The comparison's plots, as SVG text without outside references."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.summary import ArmSummary, split, summarise

Measure = Callable[[ArmSummary], float | None]
"""What is drawn of an arm; None where there is nothing."""

_RIGHT, _SAME, _KL = "right replies", "replies that are full prefill's", "mean KL a position (nats)"
_LINEAR_BELOW = 1e-4
"""KL below this is drawn on a linear scale, so that 0 has a place."""

_MEASURES: dict[str, Measure] = {
    _RIGHT: lambda each: each.accuracy,
    _SAME: lambda each: each.exact,
    _KL: lambda each: each.fidelity.mean_kl,
}


def over_work(summaries: Sequence[ArmSummary]) -> str:
    """Accuracy, agreement and KL of each rule over its work; full prefill's accuracy as a line."""
    rules = [each for each in summaries if each.work is not None]
    wanted = _there(summaries)
    figure = Figure(figsize=(5.5 * len(wanted), 4.6), layout="constrained")
    for axes, (label, measure) in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted.items(), strict=True):
        _points(axes, rules, measure)
        for each in summaries:
            if each.work is None and label != _KL:
                axes.axhline(measure(each) or 0, color="grey", linewidth=0.8, linestyle="--")
        _scale(axes, label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, ncols=5, loc="outside lower center")
    return svg(figure)


def by_part(rows: Sequence[Row], attribute: str) -> str:
    """Accuracy (agreement, where a part can't be graded) and KL of each arm by an attribute of the rows, as bars."""
    parts: Mapping[str, list[ArmSummary]] = {name: summarise(part) for name, part in split(rows, attribute).items()}
    arms = list(dict.fromkeys(each.arm for part in parts.values() for each in part))
    wanted = _there([each for part in parts.values() for each in part])
    if len(wanted) > 2:
        graded = all(each.accuracy is not None for part in parts.values() for each in part)
        del wanted[_SAME if graded else _RIGHT]
    figure = Figure(figsize=(11, 2.9 * len(wanted) + 0.8), layout="constrained")
    for axes, (label, measure) in zip(figure.subplots(len(wanted), squeeze=False)[:, 0], wanted.items(), strict=True):
        _bars(axes, parts, arms, measure)
        _scale(axes, label)
    figure.axes[-1].set_xlabel(attribute)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, ncols=5, loc="outside lower center")
    return svg(figure)


def _there(summaries: Sequence[ArmSummary]) -> dict[str, Measure]:
    """The measures that some arm has."""
    return {label: each for label, each in _MEASURES.items() if any(each(s) is not None for s in summaries)}


def _points(axes: Axes, rules: Sequence[ArmSummary], measure: Measure) -> None:
    """A point an arm; arms of one rule are joined in order of work."""
    by_rule: dict[str, list[ArmSummary]] = {}
    for each in sorted(rules, key=lambda each: each.work or 0):
        by_rule.setdefault(each.arm.partition("(")[0], []).append(each)
    for rule, members in sorted(by_rule.items()):
        work, heights = (
            [value or 0 for value in values] for values in zip(*((m.work, measure(m)) for m in members), strict=True)
        )
        axes.plot(work, heights, "o-", label=rule, markersize=5)
    axes.set(xlabel="work: share of the reused rows' row-layers")


def _bars(axes: Axes, parts: Mapping[str, list[ArmSummary]], arms: Sequence[str], measure: Measure) -> None:
    width = 0.8 / len(arms)
    for index, arm in enumerate(arms):
        found = [(n, measure(each)) for n, part in enumerate(parts.values()) for each in part if each.arm == arm]
        places = [n + (index - (len(arms) - 1) / 2) * width for n, _ in found]
        heights = [height or 0 for _, height in found]
        axes.bar(places, heights, width, label=arm, color=f"C{index % 10}", alpha=1 - 0.35 * (index // 10 % 2))
    axes.set_xticks(range(len(parts)), list(parts))


def _scale(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if label == _KL:
        axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
        axes.set_ylim(0, 2 * max(axes.dataLim.y1, _LINEAR_BELOW))
    else:
        axes.set_ylim(-0.03, 1.03)


def svg(figure: Figure) -> str:
    """The figure without XML prologue, so that it can stand in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
