"""What the rows of an arm come to, beside full prefill on the same items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from agentkv_evals.accuracy.arms import EXACT, FULL
from agentkv_evals.accuracy.bootstrap import Interval, paired
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.comparison.fidelity import Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm over some items.

    Attributes:
        arm: its name.
        items: how many.
        graded: of these, those whose reply can be graded.
        accuracy: share of right replies among them; None without any.
        loss: accuracy minus full prefill's on the same items, with its paired 95% interval; None likewise.
        exact: share of replies that are full prefill's, word for word.
        fidelity: top-1 agreement and KL over all positions of full prefill's replies.
        kl_an_item: mean over items of the mean KL of an item's positions.
        work: row-layers of probes, screening and repairs over the reused rows' row-layers; a ratio of sums. None where
            no kept KV was asked for.
        probe, repair, screening: the parts of `work`.
        fresh: row-layers of the pass that fresh rows need anyway, over the prompts' row-layers.
        prefix: tokens read as an exact prefix over the prompts' tokens.
        same_choice: share of items with a choice in which the same is chosen; None without such items.
        ttft_ratio: median over items of full prefill's time to first token over the arm's.
        fallbacks: reasons and counts.
    """

    arm: str
    items: int
    graded: int
    accuracy: float | None
    loss: Interval | None
    exact: float
    fidelity: Fidelity
    kl_an_item: float
    work: float | None
    probe: float
    repair: float
    screening: float
    fresh: float
    prefix: float
    same_choice: float | None
    ttft_ratio: float
    fallbacks: dict[str, int]

    @classmethod
    def of(cls, rows: Sequence[Row], full: Mapping[str, Row]) -> ArmSummary:
        """Of one arm's rows; `full` has full prefill's row of each prompt."""
        items = len(rows)
        graded = [row for row in rows if row.right is not None]
        reused = sum(row.reused * row.layers for row in rows)
        judged = [row.same_choice for row in rows if row.same_choice is not None]
        probe, repair, screening = (
            sum(parts) / max(reused, 1) for parts in zip(*((r.probe, r.repair, r.screening) for r in rows), strict=True)
        )
        return cls(
            arm=rows[0].arm,
            items=items,
            graded=len(graded),
            accuracy=sum(bool(row.right) for row in graded) / len(graded) if graded else None,
            loss=paired([bool(r.right) - bool(full[r.case].right) for r in graded]) if graded else None,
            exact=sum(row.exact for row in rows) / items,
            fidelity=Fidelity(
                positions=sum(row.positions for row in rows),
                mismatched=sum(row.mismatched for row in rows),
                ties=sum(row.ties for row in rows),
                kl_sum=sum(row.kl_sum for row in rows),
            ),
            kl_an_item=sum(row.kl_sum / row.positions for row in rows) / items,
            work=None if rows[0].arm in (FULL, EXACT) else probe + repair + screening,
            probe=probe,
            repair=repair,
            screening=screening,
            fresh=sum(row.fresh for row in rows) / sum(row.prompt * row.layers for row in rows),
            prefix=sum(row.prefix for row in rows) / sum(row.prompt for row in rows),
            same_choice=sum(judged) / len(judged) if judged else None,
            ttft_ratio=median(full[row.case].seconds / row.seconds for row in rows),
            fallbacks=_count(row.fallbacks for row in rows),
        )


def summarise(rows: Iterable[Row]) -> list[ArmSummary]:
    """One summary an arm, in the order of first rows, full prefill first."""
    listed = list(rows)
    full = {row.case: row for row in listed if row.arm == FULL}
    by_arm: dict[str, list[Row]] = {}
    for row in listed:
        by_arm.setdefault(row.arm, []).append(row)
    return [ArmSummary.of(members, full) for members in by_arm.values()]


def split(rows: Iterable[Row], attribute: str) -> dict[str, list[Row]]:
    """The rows by one of their attributes, e.g. `family` or `depth`, in ascending order."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(str(getattr(row, attribute)), []).append(row)
    return dict(sorted(parts.items()))


def _count(fallbacks: Iterable[Mapping[str, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in fallbacks:
        for reason, count in each.items():
            counts[reason] = counts.get(reason, 0) + count
    return dict(sorted(counts.items()))
