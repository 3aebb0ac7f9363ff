"""`agentkv bench engine`, once its options are read: both arms interleaved, a table, a file."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError
from agentkv_evals.bench.engine_cases import BATCH, Case, cases
from agentkv_evals.bench.model_pair import model_pair
from agentkv_evals.bench.step_profile import profile_steps, share_outside_tensors
from agentkv_evals.comparison.environment import environment, processor

PROFILE_PROMPT, PROFILE_STEPS = 128, 100


def run_engine(
    *,
    shape: str,
    names: Sequence[str],
    tokens: int,
    rounds: int,
    threads: int,
    profile: bool,
    seed: int,
    json_file: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Measure; returns what is written.

    Raises:
        ConfigError: a file that can't be written, or no case of these names.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    torch.set_num_threads(threads)
    with model_pair(shape, max_sequences=BATCH, seed=seed) as pair:
        if profile:
            content = _profile(pair.engine, seed, console)
        else:
            large = sum(parameter.numel() for parameter in pair.reference.parameters()) > 30_000_000
            everything = cases(pair, num_tokens=tokens, seed=seed)
            chosen = [case for case in everything if not names or any(n in case.name for n in names)]
            if not chosen:
                raise ConfigError(f"no case is called {', '.join(names)}: see `agentkv bench engine --help`")
            content = {"cases": [_measure(case, rounds, large=large) for case in chosen]}
            console.print(_table(content["cases"], shape, threads))
    content |= {"shape": shape, "tokens": tokens, "seed": seed}
    content |= {"environment": environment(), "processor": processor("cpu")}
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def _measure(case: Case, rounds: int, *, large: bool) -> dict[str, Any]:
    arms = {"ours": case.ours, "theirs": case.theirs}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(rounds + 1):  # the first is dropped
        for name, run in arms.items() if number % 2 else reversed(arms.items()):
            seconds[name].append(_time(run))
    ratios = [
        [their[clock] / our[clock] for our, their in zip(seconds["ours"][1:], seconds["theirs"][1:], strict=True)]
        for clock in (0, 1)
    ]
    return {
        "case": case.name,
        "bar": case.bar_large if large else case.bar,
        **{f"{name}_wall_s": [wall for wall, _ in values[1:]] for name, values in seconds.items()},
        **{f"{name}_cpu_s": [cpu for _, cpu in values[1:]] for name, values in seconds.items()},
        "times_faster_wall": median(ratios[0]),
        "times_faster_cpu": median(ratios[1]),
    }


def _time(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _profile(engine: Any, seed: int, console: Console) -> dict[str, Any]:
    spent = profile_steps(engine, batch=BATCH, prompt=PROFILE_PROMPT, steps=PROFILE_STEPS, seed=seed)
    outside = share_outside_tensors(spent)
    table = Table(title=f"a decode step of {BATCH} sequences (CPU time)")
    for title in ("phase", "ms", "share"):
        table.add_column(title, justify="left" if title == "phase" else "right")
    for phase, value in spent.items():
        table.add_row(phase, f"{1e3 * value:.3f}", f"{value / spent['step']:.1%}")
    console.print(table)
    console.print(f"outside tensor work: {outside:.1%}")
    return {"phases_s": spent, "outside_tensor_work": outside}


def _table(records: Sequence[dict[str, Any]], shape: str, threads: int) -> Table:
    table = Table(title=f"{shape}, float32, {threads} thread(s): engine and transformers (medians)")
    for title in ("case", "ours ms", "theirs ms", "faster", "by CPU", "bar"):
        table.add_column(title, justify="left" if title == "case" else "right", no_wrap=True)
    for record in records:
        table.add_row(
            record["case"],
            f"{1e3 * median(record['ours_wall_s']):.0f}",
            f"{1e3 * median(record['theirs_wall_s']):.0f}",
            f"{record['times_faster_wall']:.2f}",
            f"{record['times_faster_cpu']:.2f}",
            f"{record['bar']:.2f}",
        )
    return table
