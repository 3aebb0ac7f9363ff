"""Our rule: the rows that read something else in this context than in their author's.

Shapes: R candidate rows, P prompt positions, T strongest keys of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentkv.screening.selectors.budget import (
    affordable_rows,
    best,
    check_ratio,
    plan_without_choice,
    repairable_positions,
    repairable_rows,
)
from agentkv.screening.selectors.probe_rows import trailing_rows
from agentkv_engine.reuse import Observation, Probe, Reading, RepairPlan, ReuseView

REACH, FADE = 4, 0.8
"""A row's change counts for the rows behind it too, by `FADE` less for each, as far as `REACH`: what a row finds, the
next ones say."""

STEPS = 2
"""How often relevance is carried on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingChange:
    """Repairs the rows whose reading the new context changes most, and that the question leads to.

    Change: in the traced layers each reused row's kept query is asked anew, over the keys that stand before it now. Its
    change is the sum over those layers of two shares of its hidden state: how far its attention output is from what it
    was in its author's context (messages gone count as much as new ones), and how far it moves by the messages that the
    author had not seen (system prompts, which everybody reads, are left in). Nothing is run to find this.

    Relevance: the most that a row gets of the head-mean attention of the prompt's last rows, run over stale keys, or of
    rows that are relevant themselves, in the traced layers, times their relevance. Rows are ranked by
    change * relevance^question.

    Attributes:
        ratio: share of the reused rows' row-layers to spend on repairs, 0 to 1.
        question: how much relevance counts; with 0 the prompt's last rows need not be run.
    """

    ratio: float = 0.2
    question: float = 0.5

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 <= self.question <= 1:
            raise ValueError(f"question {self.question} is an exponent: give 0 to 1")

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"reading_change({float(self.ratio)}, {float(self.question)})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`."""
        return affordable_rows(view, self.ratio) * view.num_layers

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: the prompt's last rows, or a mere look; None where there is no choice to make."""
        if plan_without_choice(view, self.ratio) is not None:
            return None
        return Probe(positions=trailing_rows(view) if self.question else (), depth=view.num_layers)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        """See `Selector.plan`: at equal rank the earlier row.

        Raises:
            ValueError: the engine traces no layers.
        """
        if (plan := plan_without_choice(view, self.ratio)) is not None:
            return plan
        assert observation is not None, "a choice is to be made, but nothing was observed"
        if not observation.traced_layers:
            raise ValueError("reading_change asks traces, and this engine traces no layers: set trace_layers")
        candidates, num_chosen = repairable_positions(view), affordable_rows(view, self.ratio)
        unread_RP = unread_messages(view, candidates)
        readings = [observation.reading(layer, candidates, unread_RP) for layer in observation.traced_layers]
        change_R = torch.stack([reading.since_then_R + reading.by_left_out_R for reading in readings]).sum(0)
        rank_R = spread(change_R, candidates)
        if self.question:
            asked_P = relevance(asked_by_question(view, observation), readings, candidates)
            rank_R = rank_R * spread(asked_P[candidates], candidates) ** self.question
        return RepairPlan.at_full_depth(best(rank_R, candidates, num_chosen), view.num_layers)


def asked_by_question(view: ReuseView, observation: Observation) -> Tensor:
    """The most that any of the prompt's last rows pays to each position, in any layer, [P]."""
    rows = observation.probes[0].positions
    return torch.stack([observation.attention(layer, rows).amax(0) for layer in range(view.num_layers)]).amax(0)


def relevance(asked_P: Tensor, readings: Sequence[Reading], candidates: Sequence[int]) -> Tensor:
    """What the question asks, carried on to what the rows it asks read themselves, `STEPS` times, [P]."""
    relevant_P, rows = asked_P.clone(), torch.tensor(candidates, device=asked_P.device)
    for _ in range(STEPS):
        paid_P = relevant_P.clone()
        for reading in readings:
            passed_RT = reading.shares_RT * relevant_P[rows].unsqueeze(1)
            paid_P.scatter_reduce_(0, reading.keys_RT.flatten(), passed_RT.flatten(), "amax")
        relevant_P = paid_P
    return relevant_P


def unread_messages(view: ReuseView, candidates: Sequence[int]) -> Tensor:
    """For each candidate row the reused positions that its author had not seen, bool [R, P]."""
    reused_P = torch.zeros(view.num_tokens, dtype=torch.bool)
    for span in view.spans:
        reused_P[span.start : span.end] = True
    rows = []
    for span in view.spans:
        unseen_P = torch.zeros_like(reused_P)
        for start, end in span.unseen:
            unseen_P[start:end] = True
        rows.append((unseen_P & reused_P).expand(len(repairable_rows(span, view)), -1))
    unread_RP = torch.cat(rows)
    assert len(unread_RP) == len(candidates)
    return unread_RP


def spread(change_R: Tensor, candidates: Sequence[int]) -> Tensor:
    """Each row's change, or that of a row shortly before it, faded, whichever is greater."""
    positions = torch.tensor(candidates, device=change_R.device)
    spread_R = change_R.clone()
    for step in range(1, min(REACH, len(candidates) - 1) + 1):
        follows = positions[step:] - positions[:-step] == step
        spread_R[step:] = torch.maximum(spread_R[step:], torch.where(follows, change_R[:-step] * FADE**step, 0))
    return spread_R
