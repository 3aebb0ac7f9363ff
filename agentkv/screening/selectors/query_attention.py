"""ProphetKV's rule: the rows that the question reads."""

from dataclasses import dataclass

import torch

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
class QueryAttention:
    """Repairs in full the reused rows that get most attention from the prompt's last rows (arXiv 2602.02579).

    Attention is averaged over the probe's rows and over the layers, and gives one static set for all layers.

    Attributes:
        ratio: share of the reused rows' row-layers to spend, 0 to 1.
    """

    ratio: float = 0.2

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"query_attention({float(self.ratio)})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: the prompt's last rows through all layers; None where there is no choice to make."""
        if plan_without_choice(view, self.ratio) is not None:
            return None
        return Probe(positions=trailing_rows(view), depth=view.num_layers)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: the most attended rows, at equal attention the earlier one; it leaves the others'."""
        if (plan := plan_without_choice(view, self.ratio)) is not None:
            return plan
        assert observation is not None, "a choice is to be made, but nothing was observed"
        candidates, num_chosen = repairable_positions(view), affordable_rows(view, self.ratio)
        rows = observation.probes[0].positions
        attention_P = torch.stack([observation.attention(n, rows).mean(0) for n in range(view.num_layers)]).mean(0)
        return plan_of_best(view, attention_P[candidates], candidates, num_chosen)
