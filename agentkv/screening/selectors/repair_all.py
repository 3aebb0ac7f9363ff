"""Full prefill by way of reuse: everything is recomputed."""

# ruff: noqa: ARG002 (the protocol's arguments, which this rule need not look at)

from dataclasses import dataclass

from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairAll:
    """Repairs every reused row in full, whatever its author saw: gives what full prefill gives, and costs as much."""

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return "repair_all"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return view.num_reused * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: no look is needed."""
        return None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: all reused rows."""
        positions = [position for span in view.spans for position in range(span.start, span.end)]
        return RepairPlan.at_full_depth(positions, view.num_layers, left=0.0)
