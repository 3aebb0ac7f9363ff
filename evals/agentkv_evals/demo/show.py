"""The demo's panels and tables."""

from collections.abc import Sequence

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agentkv_evals.comparison.fidelity import Fidelity
from agentkv_evals.comparison.show import figures_table, num_bytes, percent, small, times
from agentkv_evals.comparison.tally import TokenTotals
from agentkv_evals.demo.measure import AgentFigures


def untrained_notice() -> Panel:
    """Said before anything else where the model can't write."""
    return Panel(
        Text(
            "This model has random weights: what it writes has no meaning. The agents' replies are texts written for "
            "this demo, forced through the engine as if the model had chosen their tokens. KV, times and memory are "
            "real; agreement and KL say how far reuse moves the logits of random weights, and nothing about a trained "
            "model."
        ),
        title="the model is not trained",
        title_align="left",
        border_style="yellow",
    )


def changed_notice(agents: Sequence[str], selector: str) -> Panel:
    """Said plainly where reuse changed a reply."""
    words = (
        f"With reuse {' and '.join(agents)} did not reply as with full prefill. {selector} repairs a share of the rows "
        "only, and may miss what is found by way of another report. So `agentkv serve` reads exact prefixes only, "
        "unless told otherwise. A rule that would repair nearly all is not worth its probe: then all is computed."
    )
    return Panel(words, title="the replies differ", border_style="yellow")


def tokens_table(figures: Sequence[AgentFigures]) -> Group:
    """Where each prompt's tokens came from, and how soon the first token came."""
    headings = ("prompt", "prefix", "reused", "repaired", "computed", "full", "reuse", "ratio")
    table = figures_table("agent", headings)
    for each in figures:
        reuse = each.usage.reuse
        counts = (each.usage.prompt_tokens, reuse.prefix, reuse.reused, reuse.repaired, reuse.computed)
        table.add_row(each.agent, *map(_count, counts), *_ttft(each.ttft_full, each.ttft_reuse))
    table.add_section()
    sums = TokenTotals.of(each.usage for each in figures)
    counts = (sums.prompt, sums.prefix, sums.reused, sums.repaired, sums.computed)
    ttft = _ttft(sum(each.ttft_full for each in figures), sum(each.ttft_reuse for each in figures))
    table.add_row("all", *map(_count, counts), *ttft, style="bold")
    return _titled("Prompt tokens by source; ms to the first token: full prefill, reuse, ratio", table)


def memory_table(figures: Sequence[AgentFigures]) -> Group:
    """KV held without and with sharing, and how close the logits stay to full prefill's."""
    table = figures_table("agent", ("alone", "shared", "ratio", "tokens", "top-1", "mean KL"))
    for each in figures:
        table.add_row(each.agent, *_memory(each.bytes_alone, each.bytes_shared), *_fidelity(each.fidelity))
    table.add_section()
    alone, shared = sum(each.bytes_alone for each in figures), sum(each.bytes_shared for each in figures)
    total = sum((each.fidelity for each in figures), start=Fidelity())
    table.add_row("all", *_memory(alone, shared), *_fidelity(total), style="bold")
    return _titled("KV held without and with sharing; next tokens against full prefill's", table)


def caption(selector: str, rounds: int) -> Text:
    """How the tables were measured."""
    return Text(
        f"\nEach prompt asked again, one at a time, in turn with full prefill and with reuse ({selector}); times are "
        f"the best of {rounds}. alone: each agent holds its own copy of prompt and reply. shared: what the agent added "
        "to the KV held already. top-1, mean KL: the reply of the full-prefill run, forced through both.",
        style="dim",
    )


def _titled(title: str, table: Table) -> Group:
    return Group(Text(f"\n{title}", style="bold"), table)


def _count(number: int) -> str:
    return f"{number:,}"


def _ttft(full: float, reuse: float) -> tuple[str, str, str]:
    return f"{full * 1000:,.0f}", f"{reuse * 1000:,.0f}", times(full / reuse)


def _memory(alone: int, shared: int) -> tuple[str, str, str]:
    return num_bytes(alone), num_bytes(shared), times(alone / shared if shared else None)


def _fidelity(fidelity: Fidelity) -> tuple[str, str, str]:
    return _count(fidelity.positions), percent(fidelity.agreement), small(fidelity.mean_kl)
