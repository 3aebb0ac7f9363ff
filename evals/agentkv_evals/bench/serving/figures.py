"""What a cell of the benchmark (a load, a number of conversations, an arm) came to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from agentkv_evals.bench.serving.drive import Driven
from agentkv_evals.comparison.show import figures_table

MOST_TTFT_MS, MOST_TPOT_MS = 500.0, 50.0
"""Bounds at the 90th percentile within which conversations are sustained."""

SOURCES = ("prefix", "reused", "repaired", "computed")

Cell = dict[str, Any]


def cell_of(driven: Driven) -> Cell:
    """Raw figures of one run of a cell, as they are written."""
    reuses = [usage.reuse for usage in driven.answered]
    replies = [usage for usage in driven.answered if usage.completion_tokens > 1]
    return {
        "seconds": driven.seconds,
        "conversations": driven.conversations,
        "ttft_ms": [round(1e3 * usage.ttft, 3) for usage in driven.answered if usage.ttft is not None],
        "tpot_ms": [
            round(1e3 * (usage.duration - usage.ttft) / (usage.completion_tokens - 1), 3)
            for usage in replies
            if usage.ttft is not None and usage.duration is not None
        ],
        "prompt_tokens": sum(usage.prompt_tokens for usage in driven.answered),
        "completion_tokens": sum(usage.completion_tokens for usage in driven.answered),
        "row_layers": sum(reuse.row_layers for reuse in reuses),
        "full_row_layers": sum(reuse.full_row_layers for reuse in reuses),
        "restored": sum(reuse.restored for reuse in reuses),
        **{source: sum(getattr(reuse, source) for reuse in reuses) for source in SOURCES},
    }


def together(cells: Sequence[Cell]) -> Cell:
    """The runs of one cell as one."""
    return {name: sum((cell[name] for cell in cells[1:]), cells[0][name]) for name in cells[0]}


def percentiles(values: Sequence[float]) -> Mapping[str, float]:
    """P50, P90 and P99 of these, which are one at least."""
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}


def is_sustained(cell: Cell) -> bool:
    """Whether first tokens and the others came within the bounds."""
    return (
        bool(cell["ttft_ms"])
        and percentiles(cell["ttft_ms"])["p90"] <= MOST_TTFT_MS
        and (not cell["tpot_ms"] or percentiles(cell["tpot_ms"])["p90"] <= MOST_TPOT_MS)
    )


def summary(cell: Cell) -> Cell:
    """Percentiles and rates beside the raw figures."""
    return {
        "requests": len(cell["ttft_ms"]),
        "ttft": percentiles(cell["ttft_ms"]) if cell["ttft_ms"] else None,
        "tpot": percentiles(cell["tpot_ms"]) if cell["tpot_ms"] else None,
        "prompt_tokens_per_second": cell["prompt_tokens"] / cell["seconds"],
        "completion_tokens_per_second": cell["completion_tokens"] / cell["seconds"],
        "sustained": is_sustained(cell),
        "row_layers_share": cell["row_layers"] / max(1, cell["full_row_layers"]),
        "sources": {source: cell[source] / max(1, cell["prompt_tokens"]) for source in SOURCES},
    }


def ceiling(exact: Cell) -> float | None:
    """Share of the prompt tokens that exact prefix caching leaves to compute, measured; None without a prompt."""
    return exact["computed"] / exact["prompt_tokens"] if exact["prompt_tokens"] else None


def table_of(title: str, cells: Mapping[str, Cell]) -> Table:
    """A line for each arm."""
    headings = ["asked", "TTFT P50", "P90", "P99", "TPOT P90", "out/s", "read", "rows"]
    table = figures_table("arm", headings)
    table.title = title
    for arm, cell in cells.items():
        told = summary(cell)
        ttft, tpot = told["ttft"], told["tpot"]
        table.add_row(
            arm,
            str(told["requests"]),
            *(f"{ttft[p]:.0f}" if ttft else "-" for p in ("p50", "p90", "p99")),
            f"{tpot['p90']:.1f}" if tpot else "-",
            f"{told['completion_tokens_per_second']:.0f}",
            f"{told['sources']['prefix'] + told['sources']['reused']:.0%}",
            f"{told['row_layers_share']:.0%}",
        )
    return table
