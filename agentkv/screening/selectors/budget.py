"""What every rule shares: which rows may be repaired, and how many of them a share of the work buys."""

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from agentkv_engine.reuse import PlacedSpan, RepairPlan, ReuseView, Selector


class BudgetedSelector(Selector, Protocol):
    """A selector that says beforehand what its plan may cost: the worth check asks before anything has run."""

    def budget(self, view: ReuseView) -> int:
        """Most row-layers that `plan` spends on this view; the probe's are not among them."""
        ...


def repairable_rows(span: PlacedSpan, view: ReuseView) -> range:
    """Positions of a span that a rule may choose: all or none.

    A span whose author saw this very context holds what full prefill would write; one that has been computed through
    all layers in this very context has no depth left to spend.
    """
    repairable = span.context_changed and span.depth_spent < view.num_layers
    return range(span.start, span.end if repairable else span.start)


def repairable_positions(view: ReuseView) -> list[int]:
    """Sorted positions that a rule may choose."""
    return [position for span in view.spans for position in repairable_rows(span, view)]


def num_repairable(view: ReuseView) -> int:
    """Number of positions that a rule may choose."""
    return sum(len(repairable_rows(span, view)) for span in view.spans)


def affordable_rows(view: ReuseView, ratio: float) -> int:
    """Rows at full depth that `ratio` of the repairable rows' row-layers buys.

    What stands in its author's context buys nothing, whether it is read from where it is kept or from the prefix index:
    the plan for the rest is the same. Nor does the screened prefix, which was repaired when it was written.
    """
    rounding = 1e-9  # 0.29 * 100 is a hair below 29
    return math.floor(ratio * num_repairable(view) + rounding)


def plan_without_choice(view: ReuseView, ratio: float) -> RepairPlan | None:
    """The plan where `ratio` buys none of the rows or all of them, so that nothing need be looked at; else None."""
    count = affordable_rows(view, ratio)
    if 0 < count < num_repairable(view):
        return None
    candidates = repairable_positions(view)
    left = 0.0 if count == len(candidates) else None
    return RepairPlan.at_full_depth(candidates[:count], view.num_layers, left=_known(left, view))


def best(scores_N: Tensor, positions: Sequence[int], count: int) -> list[int]:
    """The `count` positions of highest score, at equal score the earlier one; `scores_N` has one for each of them."""
    ranking = scores_N.argsort(descending=True, stable=True)
    return [positions[n] for n in ranking[:count].tolist()]


def highest(scores_N: Tensor, share: float) -> Tensor:
    """Indices of this share of the rows, rounded up, those of highest score; ascending, on the scores' device."""
    ranking = scores_N.argsort(descending=True, stable=True)
    return ranking[: math.ceil(share * len(scores_N))].sort().values


def plan_of_best(
    view: ReuseView, scores_N: Tensor, positions: Sequence[int], count: int, weights_N: Tensor | None = None
) -> RepairPlan:
    """Repairs the `count` positions of highest score in full, at equal score the earlier ones.

    What it leaves is the sum over the others of `weights_N` (None: of the scores): what goes unrepaired, in the rule's
    own units.
    """
    ranking = scores_N.argsort(descending=True, stable=True)
    weights = scores_N if weights_N is None else weights_N
    left = weights[ranking[count:]].sum()  # before anything waits for the device
    chosen = [positions[n] for n in ranking[:count].tolist()]
    return RepairPlan.at_full_depth(chosen, view.num_layers, left=_known(float(left), view))


def _known(left: float | None, view: ReuseView) -> float | None:
    """What is left, where that can be said."""
    return None if inherits_error(view) else left


def inherits_error(view: ReuseView) -> bool:
    """Whether rows that no rule may choose bring an error of their own, which no plan can tell: they stand in their
    author's context, and were computed over reused KV there."""
    return any(not span.context_changed and span.hops > 0 for span in view.spans)


def check_ratio(ratio: float) -> None:
    """Raise ValueError unless `ratio` is a share."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio} is not a share of the reused row-layers: give a number from 0 to 1")
