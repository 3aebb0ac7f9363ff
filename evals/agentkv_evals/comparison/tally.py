"""Sums over the turns of one arm: where tokens came from, what was computed, how soon the first token came."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import quantiles

from agentkv.api import Usage
from agentkv_evals.comparison.fidelity import Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One turn under one arm, beside full prefill of the same turn in the same run.

    Attributes:
        agent: who answered.
        turn: index of the reply in its conversation.
        usage: counts and times of the arm.
        ttft_ratio: full prefill's TTFT over the arm's.
        fidelity: of the arm's logits to full prefill's.
    """

    agent: str
    turn: int
    usage: Usage
    ttft_ratio: float
    fidelity: Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and 90th percentile."""

    median: float
    p90: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Of these values, with linear interpolation; None where there are none."""
        ordered = list(values)
        if not ordered:
            return None
        if len(ordered) == 1:
            return cls(median=ordered[0], p90=ordered[0])
        cuts = quantiles(ordered, n=10, method="inclusive")
        return cls(median=cuts[4], p90=cuts[8])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTotals:
    """Prompt tokens by source; the other four add up to `prompt`."""

    prompt: int = 0
    prefix: int = 0
    reused: int = 0
    repaired: int = 0
    computed: int = 0

    @classmethod
    def of(cls, usages: Iterable[Usage]) -> "TokenTotals":
        """Sums over chats."""
        listed = list(usages)
        return cls(
            prompt=sum(usage.prompt_tokens for usage in listed),
            prefix=sum(usage.reuse.prefix for usage in listed),
            reused=sum(usage.reuse.reused for usage in listed),
            repaired=sum(usage.reuse.repaired for usage in listed),
            computed=sum(usage.reuse.computed for usage in listed),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the turns of one arm come to.

    Attributes:
        turns: number of turns.
        tokens: prompt tokens by source.
        row_layers, full_row_layers: layers run for the prompts, summed over rows, and what full prefill would run.
        ttft_ratio: full prefill's TTFT over the arm's, turn by turn; above 1 is sooner. None without turns.
        row_layer_ratio: full prefill's row-layers over the arm's, turn by turn.
        fidelity: over all positions of all replies.
        misses: reasons why reuse did not happen where it might have, with counts.
    """

    turns: int
    tokens: TokenTotals
    row_layers: int
    full_row_layers: int
    ttft_ratio: Spread | None
    row_layer_ratio: Spread | None
    fidelity: Fidelity
    misses: dict[str, int]

    @classmethod
    def of(cls, measured: Iterable[Measured]) -> "Tally":
        """Add up the turns of one arm."""
        turns = list(measured)
        reuses = [turn.usage.reuse for turn in turns]
        misses: dict[str, int] = {}
        for reuse in reuses:
            for reason, count in reuse.misses.items():
                misses[reason] = misses.get(reason, 0) + count
        return cls(
            turns=len(turns),
            tokens=TokenTotals.of(turn.usage for turn in turns),
            row_layers=sum(reuse.row_layers for reuse in reuses),
            full_row_layers=sum(reuse.full_row_layers for reuse in reuses),
            ttft_ratio=Spread.of(turn.ttft_ratio for turn in turns),
            row_layer_ratio=Spread.of(reuse.full_row_layers / reuse.row_layers for reuse in reuses if reuse.row_layers),
            fidelity=sum((turn.fidelity for turn in turns), start=Fidelity()),
            misses=dict(sorted(misses.items())),
        )
