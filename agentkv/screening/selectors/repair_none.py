"""Careless reuse: nothing is recomputed."""

# ruff: noqa: ARG002 (the protocol's arguments, which this rule need not look at)

from dataclasses import dataclass

from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairNone:
    """Reads all reused rows as they are: the cheapest rule, whose error every other one has to beat."""

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return "repair_none"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return 0

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: no look is needed."""
        return None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: nothing."""
        return RepairPlan()
