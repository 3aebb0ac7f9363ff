"""CacheBlend's rule: the rows whose V changes most in an early layer."""

from dataclasses import dataclass

from agentkv.screening.selectors.budget import (
    affordable_rows,
    check_ratio,
    plan_of_best,
    plan_without_choice,
    repairable_positions,
)
from agentkv.screening.selectors.probe_rows import trailing_rows
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDeviation:
    """Runs every row through the first layers and repairs those whose V differs most there (arXiv 2405.16444).

    As published in its code: one layer is checked, by the squared distance of V alone, and one set serves all layers
    above. The probe is as deep as the engine's next allowed depth: allow `layer` among its levels, or it runs them all.

    Attributes:
        ratio: share of the reused rows' row-layers to spend on repairs, 0 to 1.
        layer: whose V is compared, 1 or more; K and V of layer 0 never change.
    """

    ratio: float = 0.16
    layer: int = 1

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.layer < 1:
            raise ValueError(f"layer {self.layer} has the same V in every context: give 1 or more")

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"value_deviation({float(self.ratio)}, {self.layer})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: all rows behind the exact prefix."""
        if plan_without_choice(view, self.ratio) is not None:
            return None
        return Probe(positions=tuple(range(view.num_prefix, view.num_tokens)), depth=self._checked(view))

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: the rows of greatest change, at equal change the earlier one.

        What is left is the change of the others times the attention that the prompt's last rows pay them: not part of
        the published rule, and it chooses nothing.
        """
        if (plan := plan_without_choice(view, self.ratio)) is not None:
            return plan
        assert observation is not None, "a choice is to be made, but nothing was observed"
        candidates, num_chosen = repairable_positions(view), affordable_rows(view, self.ratio)
        changes_N = observation.value_deviation(min(self._checked(view), view.num_layers - 1), candidates)
        read_P = observation.attention(self._checked(view) - 1, trailing_rows(view)).mean(0)
        return plan_of_best(view, changes_N, candidates, num_chosen, changes_N.sqrt() * read_P[candidates])

    def _checked(self, view: ReuseView) -> int:
        return min(self.layer, view.num_layers)
