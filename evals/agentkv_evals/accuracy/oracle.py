"""What no rule can know beforehand: which rows full prefill changes, and which of them the reply depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from agentkv.screening.selectors.budget import affordable_rows, best, check_ratio, repairable_positions
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Repairs the rows of greatest deviation times importance, which `Foresight` found on the side by full prefill.

    For comparison only: what it knows is not charged.

    Attributes:
        ratio: share of the reused rows' row-layers to spend on repairs, 0 to 1.
    """

    ratio: float = 0.1

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"oracle({float(self.ratio)})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:  # noqa: ARG002 (it knows already)
        """See `Selector.probe`: no look is needed."""
        return None

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:  # noqa: ARG002 (likewise)
        """See `Selector.plan`: what it would repair if it knew nothing, the first rows; see `Informed`."""
        return RepairPlan.at_full_depth(
            repairable_positions(view)[: affordable_rows(view, self.ratio)], view.num_layers
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Informed:
    """An oracle that has been told the score of each position of one prompt; a `Selector`."""

    rule: Oracle
    scores: tuple[float, ...]

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return self.rule.name

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`."""
        return self.rule.probe(view)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:  # noqa: ARG002 (it knows already)
        """See `Selector.plan`."""
        candidates = repairable_positions(view)
        scores_N = torch.tensor([self.scores[position] for position in candidates])
        chosen = best(scores_N, candidates, affordable_rows(view, self.rule.ratio))
        return RepairPlan.at_full_depth(chosen, view.num_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """Looks at full prefill of a prompt with its reply, and scores the reused rows; a `Selector` that repairs nothing.

    The reply's rows are those that want something: imp = 1 for each row whose logits give a token of it; from the top
    layer down v[l,i] = sqrt(sum_j A[l,j,i]^2 imp_j), imp_i = max(imp_i, v[l,i]^2), A full prefill's own head-mean
    attention of all rows. A row's deviation e[l,i] is the distance of its V from the kept one, over the layer's mean.
    Its score is sum_l v[l,i] e[l,i].

    Attributes:
        num_prompt: tokens of the prompt; what follows is the reply.
        scores: for each position, once it has looked.
    """

    num_prompt: int
    scores: list[float] = field(default_factory=list)
    name: str = "foresight"

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: all rows through all layers, which is full prefill."""
        return Probe(positions=tuple(range(view.num_prefix, view.num_tokens)), depth=view.num_layers)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`."""
        assert observation is not None, "it asked for a probe"
        self.scores[:] = self._scores(view, observation).tolist()
        return RepairPlan()

    def _scores(self, view: ReuseView, observation: Observation) -> Tensor:
        rows, candidates = range(view.num_prefix, view.num_tokens), repairable_positions(view)
        importance_P, scores_P = torch.zeros(view.num_tokens), torch.zeros(view.num_tokens)
        importance_P[self.num_prompt - 1 :] = 1
        for layer in reversed(range(view.num_layers)):
            squares_RP = observation.attention(layer, rows).cpu().square()
            flow_P = (squares_RP * importance_P[rows.start :].unsqueeze(1)).sum(0)
            deviation_N = observation.value_deviation(layer, candidates).cpu().sqrt()
            scores_P[candidates] += flow_P.sqrt()[candidates] * deviation_N / deviation_N.mean().clamp(min=1e-6)
            importance_P = torch.maximum(importance_P, flow_P)
        return scores_P
