"""Rows drawn by lot: what a rule has to beat at the same price."""

# ruff: noqa: ARG002 (the protocol's arguments, which this rule need not look at)

import random
from dataclasses import dataclass

from agentkv.screening.selectors.budget import affordable_rows, check_ratio, repairable_positions
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRows:
    """Repairs rows drawn at random, in full: the baseline of tests and benchmarks.

    Attributes:
        ratio: share of the reused rows' row-layers to spend, 0 to 1.
        seed: the same seed and view, the same rows.
    """

    ratio: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"random_rows({float(self.ratio)}, {self.seed})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: no look is needed."""
        return None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: as many as the ratio buys, of those whose context has changed."""
        lot = random.Random(self.seed)
        chosen = lot.sample(repairable_positions(view), affordable_rows(view, self.ratio))
        return RepairPlan.at_full_depth(chosen, view.num_layers)
