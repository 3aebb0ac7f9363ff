"""`agentkv bench plot`: times to first token that `agentkv bench ttft` wrote, as an SVG."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from agentkv.errors import ConfigError
from agentkv_evals.accuracy.plots import svg


def plot_ttft(source: Path, target: Path) -> None:
    """Write the plot of a run's file.

    Raises:
        ConfigError: a file that can't be read or written, or is of another benchmark.
    """
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        arms, title = content["arms"], f"{content['shape']}, random weights, on {content['device']}"
        drawn = over_rows(arms, title)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{source} is no file of `agentkv bench ttft --json` ({error!r}): give one") from None
    try:
        target.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write {target}: {error.strerror}") from None


def over_rows(arms: Sequence[Mapping[str, Any]], title: str) -> str:
    """How many times faster than full prefill each screened arm is, over the share of the row-layers that it runs; a
    line for each length, from the slowest to the fastest run. Dashed: what the roofline allows, full prefill as it was
    measured."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, length in enumerate(sorted({arm["length"] for arm in arms})):
        full, *screened = [arm for arm in arms if arm["length"] == length and not arm["from_host"]]
        shares = [100 * arm["row_layers"] / arm["row_layers_of_full"] for arm in screened]
        middle = [arm["times_faster_median"] for arm in screened]
        below = [value - arm["times_faster"][0] for value, arm in zip(middle, screened, strict=True)]
        above = [arm["times_faster"][-1] - value for value, arm in zip(middle, screened, strict=True)]
        label = f"{length:,} tokens (full prefill {full['ttft_ms_median']:.0f} ms)"
        axes.errorbar(shares, middle, yerr=[below, above], fmt="o-", capsize=2, color=f"C{number}", label=label)
        bound = [full["ttft_ms_median"] / arm["floor_ms"] for arm in screened]
        axes.plot(shares, bound, "--", linewidth=0.8, color=f"C{number}")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(
        xlabel="row-layers that run (% of full prefill's)", ylabel="time to first token, times faster", title=title
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return svg(figure)
