"""Curves from measured rows, and how well they say the error of tasks that they were not fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from agentkv.screening.calibration import Curve, fit_curve
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.summary import split

TARGETS = (0.01, 0.05, 0.1, 0.3)
"""Targets at which a curve is judged, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A curve on prompts that it was not fitted to.

    Attributes:
        prompts: how many, ratios counted.
        known: share of them for which the curve has an estimate.
        covered: of these, the share whose KL is at most the estimate; the curve's quantile is what to expect.
        over: of the others, by how much KL is above the estimate, in nats: median and largest; None where none is.
        rank_correlation: Spearman's, between what is left and KL.
        rank_at_one_ratio: the same among prompts repaired at one ratio, a mean over the ratios.
        accepted: for each of `TARGETS`, the share whose estimate is at most the target.
        false_safe: of those accepted, the share whose KL is above the target; None where none is.
    """

    prompts: int
    known: float
    covered: float | None
    over: tuple[float, float] | None
    rank_correlation: float
    rank_at_one_ratio: float
    accepted: tuple[float, ...]
    false_safe: tuple[float | None, ...]

    @classmethod
    def of(cls, curve: Curve, rows: Sequence[Row]) -> Check:
        """Judge a curve by rows that say what they left."""
        pairs = [(curve.estimate(row.left or 0), mean_kl(row)) for row in rows]
        known = [(estimate, kl) for estimate, kl in pairs if estimate is not None]
        over = [kl - estimate for estimate, kl in known if kl > estimate]
        safe = [[kl > target for estimate, kl in known if estimate <= target] for target in TARGETS]
        return cls(
            prompts=len(rows),
            known=len(known) / len(rows),
            covered=_share([kl <= estimate for estimate, kl in known]),
            over=(float(np.median(over)), max(over)) if over else None,
            rank_correlation=_rank_correlation(rows),
            rank_at_one_ratio=float(np.mean([_rank_correlation(list(part)) for part in split(rows, "arm").values()])),
            accepted=tuple(len(each) / len(rows) for each in safe),
            false_safe=tuple(_share(each) for each in safe),
        )

    def as_dict(self) -> dict[str, object]:
        """For the calibration's file."""
        return {**asdict(self), "targets": TARGETS}


def mean_kl(row: Row) -> float:
    """Mean KL a position of a row."""
    return row.kl_sum / row.positions


def halves(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to fit to, and rows to judge by: every other family, or where there is one only, every other item."""
    listed = [row for row in rows if row.left is not None]
    families = sorted({row.family for row in listed})
    items = sorted({row.item for row in listed})
    one_task = len({row.item.partition("/")[0] for row in listed}) == 1
    order = {name: rank for rank, name in enumerate(items if one_task else families)}
    ranks = [order[row.item if one_task else row.family] for row in listed]
    fitted = [row for row, rank in zip(listed, ranks, strict=True) if rank % 2 == 0]
    return fitted, [row for row, rank in zip(listed, ranks, strict=True) if rank % 2]


def curves_of(rows: Iterable[Row], *, quantile: float) -> dict[str, Curve]:
    """A curve for each rule that has enough rows with an estimate, whatever its ratio."""
    by_rule: dict[str, list[Row]] = {}
    for row in rows:
        by_rule.setdefault(rule_of(row), []).append(row)
    return {
        rule: fit_curve([row.left or 0 for row in members], [mean_kl(row) for row in members], quantile=quantile)
        for rule, members in by_rule.items()
    }


def rule_of(row: Row) -> str:
    """The rule of a row without its parameters."""
    return row.arm.partition("(")[0]


def _share(truths: Sequence[bool]) -> float | None:
    return sum(truths) / len(truths) if truths else None


def _rank_correlation(rows: Sequence[Row]) -> float:
    return _spearman([row.left or 0 for row in rows], [mean_kl(row) for row in rows])


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    first, second = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]
