"""One HTML page of a comparison, with nothing to load from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

from agentkv_evals.accuracy.plots import by_part, over_work
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.show import ANSWERS, COSTS, LEGEND, answers, costs
from agentkv_evals.accuracy.summary import ArmSummary, split, summarise
from agentkv_evals.comparison.show import small

SPLITS = ("family", "depth", "topology", "question", "length", "hop")
"""What the results are split by; a split with a single part is left out."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } h2 { margin-top: 2.5rem; } .note { color: #555; }
"""


def html(rows: Sequence[Row]) -> str:
    """The page for these rows, all of one run.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no rows: measure something first")
    summaries = summarise(rows)
    parts = [
        "<h1>Repair rules beside full prefill</h1>",
        _paragraph(LEGEND),
        _image(over_work(summaries), "Answers and KL over work"),
        _table("arm", ANSWERS, ((each.arm, *answers(each)) for each in summaries)),
        _table("arm", COSTS, ((each.arm, *costs(each)) for each in summaries)),
        *(_split(rows, attribute) for attribute in SPLITS if len(split(rows, attribute)) > 1),
        "<h2>What these figures depend on</h2>",
        _table("", ("",), ((key, str(value)) for key, value in _provenance(rows))),
    ]
    head = f"<meta charset='utf-8'><title>agentkv accuracy</title><style>{_STYLE}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _split(rows: Sequence[Row], attribute: str) -> str:
    parts = {name: {each.arm: each for each in summarise(part)} for name, part in split(rows, attribute).items()}
    arms = dict.fromkeys(row.arm for row in rows)
    lines = [(arm, *(_part(part[arm]) if arm in part else "-" for part in parts.values())) for arm in arms]
    return "\n".join(
        (
            f"<h2>By {escape(attribute)}</h2>",
            _paragraph("Right replies / replies that are full prefill's / mean KL a position / same candidate chosen."),
            _image(by_part(rows, attribute), f"Answers and KL by {attribute}"),
            _table("arm", list(parts), lines),
        )
    )


def _part(each: ArmSummary) -> str:
    right = "-" if each.accuracy is None else f"{each.accuracy:.0%}"
    judged = "" if each.same_choice is None else f" / {each.same_choice:.0%}"
    return f"{right} / {each.exact:.0%} / {small(each.fidelity.mean_kl)}{judged}"


def _provenance(rows: Sequence[Row]) -> list[tuple[str, object]]:
    seeds = [row.seed for row in rows]
    items = len({row.case for row in rows})
    commits = sorted({str(row.run.get("commit")) for row in rows})
    run = {**rows[0].run, "commit": ", ".join(commits)}
    return [*run.items(), ("prompts", items), ("seeds", f"{min(seeds)} to {max(seeds)}")]


def _table(label: str, headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in (label, *headings))
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _paragraph(text: str) -> str:
    return f"<p class='note'>{escape(text)}</p>"


def _image(svg: str, description: str) -> str:
    data = b64encode(svg.encode()).decode()
    return f"<img alt='{escape(description)}' src='data:image/svg+xml;base64,{data}'>"
