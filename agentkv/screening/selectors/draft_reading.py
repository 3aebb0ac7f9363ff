"""Our rule: the rows that the reply reads, and that read something else in this context than in their author's.

Shapes: R candidate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from agentkv.screening.reads import Reads
from agentkv.screening.selectors.budget import (
    affordable_rows,
    check_ratio,
    highest,
    plan_of_best,
    plan_without_choice,
    repairable_positions,
)
from agentkv.screening.selectors.reading_change import changes, spread, unread_messages
from agentkv_engine.reuse import Amendment, Draft, Observation, Probe, RepairPlan, ReuseView

LOOK_AT = 0.4
"""Share of the rows that are looked at, those of greatest importance."""

MOST_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftReading:
    """Writes the first tokens of the reply over the stale keys, looks at what they read, and repairs that.

    What a prompt needs is what its reply reads, and a draft tells that even where it is wrong. Importance flows from
    the prompt's last row and the draft's down what rows read (`Reads.flow`): those that ran by their own queries, stale
    ones, in the traced layers, by those they were kept with. Rows are ranked by importance times their change (see
    `reading_change`). Those repaired run together with the prompt's last row and the draft's, whose tokens count as far
    as they come out again.

    Attributes:
        ratio: share of the reused rows' row-layers to spend on repairs, 0 to 1.
        tokens: length of the draft.
    """

    ratio: float = 0.15
    tokens: int = 8

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ValueError(f"tokens {self.tokens} is no length of a draft: give a count from 1 to {MOST_TOKENS}")

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"draft_reading({float(self.ratio)}, {self.tokens})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:  # noqa: ARG002 (it looks when there is a draft)
        """See `Selector.probe`: nothing is looked at beforehand."""
        return None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:  # noqa: ARG002 (likewise)
        """See `Selector.plan`: nothing yet, but a watch, where there is a choice to make."""
        if (plan := plan_without_choice(view, self.ratio)) is not None:
            return plan
        return RepairPlan(watch=partial(DraftWatch, self))


class DraftWatch:
    """Implements `agentkv_engine.reuse.Watch` for one prompt: a draft, an amendment, and it is over.

    Args:
        rule: what is asked for.
        view: the prompt.
        repaired: positions that are repaired already, where it has been watched before.
    """

    def __init__(self, rule: DraftReading, view: ReuseView, repaired: Sequence[int]) -> None:
        self._rule = rule
        self._view = view
        self._reads = Reads(view.num_layers)
        self._is_done = len(repaired) > 0

    def see(self, observation: Observation) -> None:
        """See `Watch.see`."""
        if self._is_done:
            return
        positions = [position for probe in observation.probes for position in probe.positions]
        if not positions:
            return
        for layer in range(self._view.num_layers):
            self._reads.put(layer, observation, positions)

    def ask(self, observation: Observation, speaking: range) -> Draft | Amendment | None:
        """See `Watch.ask`.

        Raises:
            ValueError: the engine traces no layers.
        """
        if self._is_done:
            return None
        if len(speaking) == 1:
            return Draft(num_tokens=self._rule.tokens)
        self._is_done = True
        if not observation.traced_layers:
            raise ValueError("draft_reading asks traces, and this engine traces no layers: set trace_layers")
        num_chosen = affordable_rows(self._view, self._rule.ratio)
        candidates = [p for p in repairable_positions(self._view) if p < self._view.num_tokens - 1]
        scores_R = self._scores(observation, speaking, candidates)
        plan = plan_of_best(self._view, scores_R, candidates, num_chosen, scores_R / len(candidates))
        return Amendment(repairs=plan.positions, left=plan.left)

    def _scores(self, observation: Observation, speaking: range, candidates: Sequence[int]) -> Tensor:
        """Importance times change of each row that may be repaired; 0 for rows of little importance."""
        read = highest(self._reads.flow(speaking)[list(candidates)], LOOK_AT)
        for layer in observation.traced_layers:
            self._reads.put(layer, observation, [candidates[n] for n in read.tolist()])
        importance_R = self._reads.flow(speaking)[list(candidates)]
        looked = highest(importance_R, max(LOOK_AT, self._rule.ratio))
        change_R = torch.zeros_like(importance_R)
        change_R[looked] = changes(observation, unread_messages(self._view), looked).cpu()
        return importance_R * spread(change_R, candidates)
