"""Our rule: the rows that the answer depends on, directly or through other rows.

Shapes: R rows whose attention is known, P prompt positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentkv.screening.selectors.budget import (
    affordable_rows,
    best,
    check_ratio,
    plan_of_best,
    plan_without_choice,
    repairable_positions,
)
from agentkv.screening.selectors.probe_rows import trailing_rows
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class PropagatedAttention:
    """Repairs the rows of greatest importance, where importance flows from the prompt's last row down what rows read.

    Importance of a row: imp(last row) = 1; layer by layer from the top v[l,i] = sqrt(sum_j A[l,j,i]^2 imp_j) and
    imp_i = max(imp_i, v[l,i]^2), A the head-mean attention, j the rows looked at. Rows are ranked by sum_l v[l,i]. So a
    row that nobody but another stale row reads is found, as no rule does that looks at the question's attention alone.

    The rows looked at start with the prompt's last ones and grow by the most important reused rows, which run as one
    more probe a round.

    Attributes:
        ratio: share of the reused rows' row-layers to spend on repairs, 0 to 1.
        growth: share of the reused rows by which the rows looked at grow in a round.
        rounds: how often they grow.
    """

    ratio: float = 0.1
    growth: float = 0.04
    rounds: int = 5

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 < self.growth <= 1 or not 0 <= self.rounds <= MOST_ROUNDS:
            raise ValueError(
                f"growth {self.growth} is a share above 0, and rounds {self.rounds} a count of 0 to {MOST_ROUNDS}"
            )

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"propagated_attention({float(self.ratio)}, {float(self.growth)}, {self.rounds})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: the prompt's last rows through all layers; None where there is no choice to make."""
        if plan_without_choice(view, self.ratio) is not None:
            return None
        return Probe(positions=trailing_rows(view), depth=view.num_layers)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan | Probe:
        """See `Selector.plan`: one more probe in each round, then the most important rows."""
        if (plan := plan_without_choice(view, self.ratio)) is not None:
            return plan
        assert observation is not None, "a choice is to be made, but nothing was observed"
        candidates, num_chosen = repairable_positions(view), affordable_rows(view, self.ratio)
        rows = [position for probe in observation.probes for position in probe.positions]
        importance_P = importance(observation, view, rows)
        unknown = [position for position in candidates if position not in set(rows)]
        if unknown and len(observation.probes) <= self.rounds:
            more = best(importance_P[unknown], unknown, math.ceil(self.growth * view.num_reused))
            return Probe(positions=tuple(sorted(more)), depth=view.num_layers)
        return plan_of_best(view, importance_P[candidates], candidates, num_chosen)


MOST_ROUNDS = 16


def importance(observation: Observation, view: ReuseView, rows: Sequence[int]) -> Tensor:
    """Sum over layers of v, [P]; see `PropagatedAttention`.

    Args:
        rows: those looked at, which a probe has run through all layers.
    """
    importance_P, total_P = torch.zeros(view.num_tokens), torch.zeros(view.num_tokens)
    importance_P[-1] = 1
    for layer in reversed(range(view.num_layers)):
        squares_RP = observation.attention(layer, rows).square()
        importance_P, total_P = importance_P.to(squares_RP), total_P.to(squares_RP)
        flow_P = importance_P[list(rows)] @ squares_RP
        total_P += flow_P.sqrt()
        importance_P = torch.maximum(importance_P, flow_P)
    return total_P
