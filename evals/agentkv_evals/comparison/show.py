"""Figures as people read them; the replay's and the demo's tables share these."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from agentkv_evals.comparison.tally import Spread


def figures_table(label: str, headings: Sequence[str]) -> Table:
    """An empty table with a column of labels and columns of figures, narrow enough for 80 columns with nine of them."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in (label, *headings):
        table.add_column(heading, justify="left" if heading == label else "right", no_wrap=True)
    return table


def share(part: int, whole: int) -> str:
    """A part in percent."""
    return f"{part / whole:.1%}" if whole else "-"


def times(ratio: float | Spread | None) -> str:
    """A ratio; of a spread, the median."""
    value = ratio.median if isinstance(ratio, Spread) else ratio
    return "-" if value is None else f"{value:.2f}x"


def percent(value: float) -> str:
    """A share near one: 100% is shown only where there is no exception at all."""
    shown = f"{value:.2%}"
    return "<100%" if value < 1 and shown == "100.00%" else shown


def small(value: float) -> str:
    """A divergence: fixed point while that says something."""
    return "0" if value == 0 else f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def num_bytes(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
