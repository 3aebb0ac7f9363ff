"""Is reuse worth it? Asked before a request is submitted, answered from counts alone."""

from dataclasses import dataclass

from agentkv.screening.selectors.budget import BudgetedSelector
from agentkv.screening.selectors.draft_reading import DraftReading
from agentkv_engine.reuse import ReuseView

NOT_WORTH = "not_worth"
"""The reason under which such a request is counted in `ReuseUsage.misses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthCheck:
    """Weighs the row-layers that a prompt costs with reuse against those of full prefill.

    With reuse it runs its fresh rows, at most the selector's budget of repairs, and the probe: its rows, and one more
    pass over the weights, which costs as much as some number of rows. A draft is as many passes as it has tokens, and
    one to repair, and each of its rows runs twice. Attention that the reused rows are spared is not counted: it only
    adds to the gain.

    Attributes:
        min_reused: fewest tokens to be reused: below, full prefill is as fast. `agentkv calibrate` measures it on a
            model and device; the default is a guess.
        max_cost: reuse must cost at most this share of full prefill's row-layers.
        pass_rows: number of rows whose computation takes as long as reading all weights once.
    """

    min_reused: int = 32
    max_cost: float = 0.9
    pass_rows: int = 16

    def __post_init__(self) -> None:
        if self.min_reused < 0 or self.pass_rows < 0 or not 0 <= self.max_cost <= 1:
            raise ValueError(f"{self}: give counts of 0 or more, and a share max_cost from 0 to 1")

    def reason_against(self, view: ReuseView, selector: BudgetedSelector) -> str | None:
        """Why the spans of this view should not be read, or None where reading them is worth it."""
        full = (view.num_tokens - view.num_prefix) * view.num_layers
        if view.num_reused < self.min_reused or self.cost(view, selector) > self.max_cost * full:
            return NOT_WORTH
        return None

    def cost(self, view: ReuseView, selector: BudgetedSelector) -> int:
        """Predicted row-layers with reuse: fresh rows, the first probe (through all layers, the only depth that the
        service's engine allows), and the most that the selector may repair. Later probes are not foreseen."""
        fresh = (view.num_tokens - view.num_prefix - view.num_reused) * view.num_layers
        probe = selector.probe(view)
        if isinstance(selector, DraftReading) and selector.budget(view) > 0:
            passes = selector.tokens + 1
            return fresh + selector.budget(view) + passes * (self.pass_rows + 2) * view.num_layers
        if probe is None:
            return fresh + selector.budget(view)
        extra_pass = self.pass_rows if probe.positions or view.first_reused > view.num_prefix else 0
        return fresh + (len(probe.positions) + extra_pass) * view.num_layers + selector.budget(view)
