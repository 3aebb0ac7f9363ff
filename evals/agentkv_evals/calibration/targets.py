"""What chats get at a target KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.summary import ArmSummary
from agentkv_evals.calibration.fit import mean_kl


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One rule that deepens its plans to one target, on prompts that its calibration has not seen.

    Attributes:
        rule, target: which.
        prompts: how many.
        kl_mean, kl_median, kl_p90, kl_largest: of the prompts' mean KL a position, in nats.
        above: share of the prompts above the target.
        above_by_family: the same, for each family that has any.
        same: share of the replies that are full prefill's.
        agreement: share of positions with full prefill's best token.
        right, right_full: share of right replies, and full prefill's; None where nobody can say.
        work: row-layers of looking and repairing over those of the reused rows.
        full: share of the prompts that were repaired in full.
    """

    rule: str
    target: float
    prompts: int
    kl_mean: float
    kl_median: float
    kl_p90: float
    kl_largest: float
    above: float
    above_by_family: dict[str, float]
    same: float
    agreement: float
    right: float | None
    right_full: float | None
    work: float
    full: float

    @classmethod
    def of(cls, rule: str, target: float, rows: Sequence[Row], full: Sequence[Row]) -> Kept:
        """Of one arm's rows, and those of full prefill."""
        references = {row.case: row for row in full}
        summary = ArmSummary.of(rows, references)
        reference = ArmSummary.of([references[row.case] for row in rows], references)
        kl = np.array([mean_kl(row) for row in rows])
        families = sorted({row.family for row in rows})
        above = {name: _share([mean_kl(row) > target for row in rows if row.family == name]) for name in families}
        return cls(
            rule=rule,
            target=target,
            prompts=len(rows),
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_p90=float(np.quantile(kl, 0.9)),
            kl_largest=float(kl.max()),
            above=_share([bool(each > target) for each in kl]),
            above_by_family={name: share for name, share in above.items() if share},
            same=summary.exact,
            agreement=summary.fidelity.agreement,
            right=summary.accuracy,
            right_full=reference.accuracy,
            work=summary.work or 0.0,
            full=_share([row.repair >= row.reused * row.layers for row in rows]),
        )


def _share(truths: Sequence[bool]) -> float:
    return sum(truths) / len(truths)
