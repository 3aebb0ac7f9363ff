"""Our rule: the rows that the answer depends on, directly or through other rows.

Shapes: L layers, R rows whose attention is known, T strongest keys of a row, P prompt positions.
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

    The rows looked at start with the prompt's last ones and grow by the most important reused rows, a round at a time:
    by their traces where the engine traces all layers, else by running them as one more probe.

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
        """See `Selector.plan`: one more probe while candidates are to be run, then the most important rows."""
        if (plan := plan_without_choice(view, self.ratio)) is not None:
            return plan
        assert observation is not None, "a choice is to be made, but nothing was observed"
        candidates, num_chosen = repairable_positions(view), affordable_rows(view, self.ratio)
        reads = Reads(observation, view)
        reads.look_at([position for probe in observation.probes for position in probe.positions])
        for _ in range(len(observation.probes) - 1, self.rounds):
            more = self._next_candidates(view, reads, candidates)
            if not more:
                break
            if len(observation.traced_layers) < view.num_layers:
                return Probe(positions=tuple(sorted(more)), depth=view.num_layers)
            reads.look_at(more)
        return plan_of_best(view, reads.importance()[candidates], candidates, num_chosen)

    def _next_candidates(self, view: ReuseView, reads: Reads, candidates: Sequence[int]) -> list[int]:
        """The most important rows that nobody has looked at yet."""
        known = set(reads.positions)
        unknown = [position for position in candidates if position not in known]
        return best(reads.importance()[unknown], unknown, math.ceil(self.growth * view.num_reused))


MOST_ROUNDS = 16
STRONGEST = 64
"""Keys of a row that are remembered in each layer: attention counts by its square, so the rest adds next to nothing."""


class Reads:
    """What the rows looked at read, and the importance that follows from it."""

    def __init__(self, observation: Observation, view: ReuseView) -> None:
        self._observation = observation
        self._view = view
        self.positions: list[int] = []
        self._strongest: list[tuple[Tensor, Tensor]] = []  # a look: attention and keys, [L, R, T] each

    def look_at(self, positions: Sequence[int]) -> None:
        """Take in what these rows read, in all layers."""
        width = min(STRONGEST, self._view.num_tokens)
        layers = range(self._view.num_layers)
        tops = [self._observation.attention(layer, positions).topk(width, dim=1) for layer in layers]
        self._strongest.append((torch.stack([t.values for t in tops]), torch.stack([t.indices for t in tops])))
        self.positions += positions

    def importance(self) -> Tensor:
        """Sum over layers of v, [P]; see `PropagatedAttention`."""
        shares_LRT, keys_LRT = (torch.cat(parts, dim=1) for parts in zip(*self._strongest, strict=True))
        squares_LRT = shares_LRT.square()
        rows = torch.tensor(self.positions, device=squares_LRT.device)
        importance_P = squares_LRT.new_zeros(self._view.num_tokens)
        importance_P[-1] = 1
        total_P = torch.zeros_like(importance_P)
        for layer in reversed(range(self._view.num_layers)):
            weighed_RT = squares_LRT[layer] * importance_P[rows].unsqueeze(1)
            flow_P = torch.zeros_like(importance_P).index_add_(0, keys_LRT[layer].flatten(), weighed_RT.flatten())
            total_P += flow_P.sqrt()
            importance_P = torch.maximum(importance_P, flow_P)
        return total_P
