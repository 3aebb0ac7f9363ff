"""The comparison's plots, as SVG text without outside references."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agentkv_evals.accuracy.arms import FULL
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.summary import ArmSummary, split, summarise


def over_work(summaries: Sequence[ArmSummary]) -> str:
    """Agreement and KL of each arm over its work, side by side."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rules = [each for each in summaries if each.arm != FULL]
    _points(left, rules, lambda each: each.exact)
    left.set(ylabel="replies that are full prefill's", ylim=(-0.03, 1.03))
    _points(right, rules, lambda each: each.fidelity.mean_kl)
    right.set(ylabel="mean KL a position (nats)")
    right.set_yscale("symlog", linthresh=1e-4)
    right.set_ylim(bottom=0)
    left.legend(fontsize=7, loc="lower right")
    return _svg(figure)


def by_part(rows: Sequence[Row], attribute: str) -> str:
    """Accuracy of each arm by family, depth, topology or question position, as grouped bars."""
    parts: Mapping[str, list[ArmSummary]] = {name: summarise(part) for name, part in split(rows, attribute).items()}
    arms = list(dict.fromkeys(each.arm for part in parts.values() for each in part))
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(arms)
    for index, arm in enumerate(arms):
        found = [(n, each) for n, part in enumerate(parts.values()) for each in part if each.arm == arm]
        places = [n + (index - (len(arms) - 1) / 2) * width for n, _ in found]
        axes.bar(places, [each.accuracy for _, each in found], width, label=arm, color=f"C{index % 10}")
    axes.set_xticks(range(len(parts)), list(parts))
    axes.set(ylabel="right replies", xlabel=attribute, ylim=(0, 1.02))
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return _svg(figure)


def _points(axes: Axes, rules: Sequence[ArmSummary], height: Callable[[ArmSummary], float]) -> None:
    """A point an arm; arms of one rule are joined in order of work."""
    by_rule: dict[str, list[ArmSummary]] = {}
    for each in sorted(rules, key=lambda each: each.work):
        by_rule.setdefault(each.arm.partition("(")[0], []).append(each)
    for rule, members in by_rule.items():
        axes.plot([each.work for each in members], [height(each) for each in members], "o-", label=rule, markersize=5)
    axes.set(xlabel="work: share of the reused rows' row-layers")
    axes.grid(alpha=0.3)


def _svg(figure: Figure) -> str:
    """The figure without XML prologue, so that it can stand in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
