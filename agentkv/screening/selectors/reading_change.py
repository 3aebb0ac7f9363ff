"""Our rule: the rows that read something else in this context than in their author's.

Shapes: R candidate rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentkv.screening.selectors.budget import (
    affordable_rows,
    check_ratio,
    highest,
    plan_of_best,
    plan_without_choice,
    repairable_positions,
    repairable_rows,
)
from agentkv_engine.reuse import Observation, Probe, RepairPlan, Reread, ReuseView

LOOK_AGAIN = 0.5
"""Behind the first traced layer only this share of the rows is looked at: those of greatest change there."""

REACH, FADE = 4, 0.8
"""A row's change counts for the rows behind it too, by `FADE` less for each, as far as `REACH`: what a row finds, the
next ones say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingChange:
    """Repairs the rows whose reading the new context changes most.

    Nothing is run to find them but the fresh rows before the first span: in the traced layers each reused row's kept
    query is asked anew, over the keys that stand before it now (behind the first of these layers, of the half of the
    rows that change most there). Its change is the sum over those layers of two shares of its hidden state: how far its
    attention output is from what it was in its author's context (messages gone count as much as new ones), and how far
    it moves by the messages that the author had not seen (system prompts, which everybody reads, are left in).

    Attributes:
        ratio: share of the reused rows' row-layers to spend on repairs, 0 to 1.
    """

    ratio: float = 0.3

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"reading_change({float(self.ratio)})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: a mere look; None where there is no choice to make."""
        return Probe(positions=(), depth=1) if plan_without_choice(view, self.ratio) is None else None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: the rows of greatest change, at equal change the earlier one. What is left is the change
        of the others, shared out over all rows that may be repaired: so it means the same in a longer prompt.

        Raises:
            ValueError: the engine traces no layers.
        """
        if (plan := plan_without_choice(view, self.ratio)) is not None:
            return plan
        assert observation is not None, "a choice is to be made, but nothing was observed"
        if not observation.traced_layers:
            raise ValueError("reading_change asks traces, and this engine traces no layers: set trace_layers")
        candidates, num_chosen = repairable_positions(view), affordable_rows(view, self.ratio)
        scores_R = spread(changes(observation, unread_messages(view)), candidates)
        return plan_of_best(view, scores_R, candidates, num_chosen, scores_R / len(candidates))


def changes(observation: Observation, rereads: Sequence[Reread], chosen: Tensor | None = None) -> Tensor:
    """Change of each of these rows, [R]: in the first traced layer, and of those that change most there in the others
    too.

    Args:
        observation: to ask.
        rereads: the rows.
        chosen: see `Observation.reading`.
    """
    first, *others = observation.traced_layers
    change_R = _change(observation, first, rereads, chosen)
    if not others:
        return change_R
    again = highest(change_R, LOOK_AGAIN)
    asked = again if chosen is None else chosen.to(again.device)[again]
    for layer in others:
        change_R.index_add_(0, again, _change(observation, layer, rereads, asked))
    return change_R


def _change(observation: Observation, layer: int, rereads: Sequence[Reread], chosen: Tensor | None) -> Tensor:
    reading = observation.reading(layer, rereads, chosen)
    return reading.since_then_R + reading.by_left_out_R


def unread_messages(view: ReuseView) -> list[Reread]:
    """The rows that may be repaired, span by span, each with the earlier messages that their author had not seen."""
    return [
        Reread(positions=rows, left_out=span.unread) for span in view.spans if (rows := repairable_rows(span, view))
    ]


def spread(change_R: Tensor, candidates: Sequence[int]) -> Tensor:
    """Each row's change, or that of a row shortly before it, faded, whichever is greater."""
    reach_R = torch.from_numpy(_reach(np.asarray(candidates))).to(change_R.device)
    spread_R = change_R.clone()
    for step in range(1, min(REACH, len(candidates) - 1) + 1):
        faded = torch.where(reach_R[step:] >= step, change_R[:-step] * FADE**step, 0)
        torch.maximum(spread_R[step:], faded, out=spread_R[step:])
    return spread_R


def _reach(positions_R: np.ndarray) -> np.ndarray:
    """How many rows stand directly before each, uint8 and at most `REACH`: a few bytes, which the device gets while it
    works."""
    number_R = np.arange(len(positions_R))
    begins_R = np.diff(positions_R, prepend=positions_R[:1] - 2) != 1
    return np.minimum(number_R - np.maximum.accumulate(number_R * begins_R), REACH).astype(np.uint8)
