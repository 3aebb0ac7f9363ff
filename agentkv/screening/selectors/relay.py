"""RelayCaching's rule: rows whose V turns away from what is kept, and rows that are much read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentkv.screening.selectors.budget import num_repairable, repairable_positions, repairable_rows
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Runs every row through the first layers and repairs those that deviate, or are read, more than most (2603.13289).

    A row is chosen where 1 - cos(V kept, V now) is `deviation` times the mean or more, where the attention that it gets
    from the rows behind it is `attention` times the mean or more, and where it is among the last rows of its span. How
    many that are, the prompt says. The rule alone: the layers that the paper leaves as they are before its band are
    looked at here, and the rows chosen are repaired through all layers. The probe is as deep as the engine's next
    allowed depth: allow `layer` among its levels, or it runs them all.

    Attributes:
        deviation, attention: multiples of the mean over the rows that may be chosen.
        last: rows at the end of each span.
        layer: whose V is compared, 1 or more; attention is that of the layer below, the last one that has run.
    """

    deviation: float = 1.5
    attention: float = 1.45
    last: int = 10
    layer: int = 1

    def __post_init__(self) -> None:
        if not (self.deviation > 0 and self.attention > 0 and self.last >= 0 and self.layer >= 1):
            raise ValueError(
                f"deviation {self.deviation} and attention {self.attention} are multiples above 0, last {self.last} a "
                f"number of rows, layer {self.layer} one above the first: K and V of layer 0 never change"
            )

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"relay({float(self.deviation)}, {float(self.attention)}, {self.last}, {self.layer})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`: all rows, since only the look says how many are chosen."""
        return num_repairable(view) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: all rows behind the exact prefix."""
        if num_repairable(view) == 0:
            return None
        return Probe(positions=tuple(range(view.num_prefix, view.num_tokens)), depth=self._depth(view))

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`."""
        candidates = repairable_positions(view)
        if not candidates:
            return RepairPlan()
        assert observation is not None, "a choice is to be made, but nothing was observed"
        depth = self._depth(view)
        turned_N = observation.value_turn(min(depth, view.num_layers - 1), candidates)
        read_N = _attention_received(view, observation, depth - 1)[candidates]
        chosen_N = (turned_N >= self.deviation * turned_N.mean()) & (turned_N > 0)
        chosen_N |= (read_N >= self.attention * read_N.mean()) & (read_N > 0)
        chosen = {position for position, is_chosen in zip(candidates, chosen_N.tolist(), strict=True) if is_chosen}
        for rows in (repairable_rows(span, view) for span in view.spans):
            chosen.update(rows[max(len(rows) - self.last, 0) :])
        return RepairPlan.at_full_depth(sorted(chosen), view.num_layers)

    def _depth(self, view: ReuseView) -> int:
        return min(self.layer, view.num_layers)


def _attention_received(view: ReuseView, observation: Observation, layer: int) -> Tensor:
    """Mean over the rows that see a key of the attention they pay it, [P]; a row's own counts."""
    rows = range(view.num_prefix, view.num_tokens)
    received_P = observation.attention(layer, rows).sum(0)
    seen_by = view.num_tokens - torch.arange(view.num_tokens, device=received_P.device).clamp(min=view.num_prefix)
    return received_P / seen_by
