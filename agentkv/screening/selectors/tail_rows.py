"""The last rows of each span."""

# ruff: noqa: ARG002 (the protocol's arguments, which this rule need not look at)

from dataclasses import dataclass

from agentkv.screening.selectors.budget import repairable_rows
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRows:
    """Repairs the last `k` rows of each span in full: the cheap baseline that needs no look.

    A message's last rows have read the whole of it, and what reads the message later often reads them.

    Attributes:
        k: rows of each span, 0 or more.
    """

    k: int = 16

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k {self.k} is not a number of rows: give 0 or more")

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"tail_rows({self.k})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return len(self._positions(view)) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: no look is needed."""
        return None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: the last rows of each span whose context has changed."""
        return RepairPlan.at_full_depth(self._positions(view), view.num_layers)

    def _positions(self, view: ReuseView) -> list[int]:
        rows = [repairable_rows(span, view) for span in view.spans]
        return [position for span in rows for position in span[max(len(span) - self.k, 0) :]]
