"""A replay on the terminal: a table per conversation as it ends, the total, and a bar meanwhile."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from agentkv.api import Reuse
from agentkv_evals.comparison.fidelity import TIE
from agentkv_evals.comparison.show import figures_table, percent, share, small, times
from agentkv_evals.replay.replay import Played
from agentkv_evals.replay.report import tally

_HEADINGS = ("prefix", "reused", "repaired", "computed", "layers", "TTFT", "top-1", "mean KL")

LEGEND = (
    "Shares of prompt tokens by source. layers: full prefill's computed row-layers over the mode's (median of turns); "
    "TTFT: full prefill's time to first token over the mode's (median); top-1, mean KL: next-token distributions "
    "against full prefill's at every token of the recorded replies."
)


def progress_bar(console: Console) -> Progress:
    """The bar; turns are its unit."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("turns"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def table(title: str, played: Sequence[Played], modes: Sequence[Reuse]) -> Group:
    """The figures of some conversations, one row a mode."""
    sums = {mode: tally(played, mode) for mode in modes}
    full, skipped = sums[Reuse.OFF], sum(each.skipped for each in played)
    counts = f"{full.turns} turns" + (f" ({skipped} skipped)" if skipped else "")
    result = figures_table("reuse", _HEADINGS)
    for mode, each in sums.items():
        tokens = each.tokens
        parts = (tokens.prefix, tokens.reused, tokens.repaired, tokens.computed)
        result.add_row(
            str(mode),
            *(share(part, tokens.prompt) for part in parts),
            times(each.row_layer_ratio),
            times(each.ttft_ratio),
            percent(each.fidelity.agreement) if each.turns else "-",
            small(each.fidelity.mean_kl) if each.turns else "-",
        )
    heading = Text.assemble((f"\n{title}", "bold"), f"  {counts}, {full.tokens.prompt:,} prompt tokens")
    return Group(heading, result)


def exactness(played: Sequence[Played]) -> str:
    """One sentence on whether exact mode gave full prefill's best token everywhere."""
    sums = tally(played, Reuse.EXACT).fidelity
    if not sums.mismatched:
        return f"exact: the best token is full prefill's at all {sums.positions:,} positions."
    return (
        f"exact: another best token than full prefill's at {sums.mismatched:,} of {sums.positions:,} positions; at "
        f"{sums.ties:,} of these full prefill's two best logits lie within {TIE:g} (largest distance "
        f"{sums.largest_gap:.1e})."
    )
