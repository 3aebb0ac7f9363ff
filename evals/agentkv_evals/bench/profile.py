"""`agentkv bench ttft --profile`: a torch profiler trace of each phase, and kernel time by phase and kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from agentkv_engine.engine import Engine
from agentkv_engine.request import Request
from agentkv_evals.bench.rates import synchronize
from agentkv_evals.bench.workload import first_token

KINDS = {
    "attention": ("attend_", "combine_splits", "gather_keys", "flash", "fmha", "sdpa", "attention"),
    "linears": ("gemm", "cutlass", "nvjet", "splitk", "gemv", "mm"),
    "norm, SwiGLU, rotation": ("add_norm", "swiglu", "rotate_and_store"),
    "copies": ("memcpy", "memset"),
}


def profile_prefill(engine: Engine, request: Request, name: str, folder: Path) -> dict[str, Any]:
    """Run one prefill; writes `<name>-<step>.json` for each of its steps and returns kernel milliseconds by kind.

    The trace shows ranges `step` and, for steps that are not captured as graphs, `layer N`; so does NVTX on CUDA.
    """
    steps = first_token(engine, request)
    phases, number, done = {}, 0, False
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (engine.config.device != "cpu")
    while not done:
        with profile(activities=activities) as trace, torch.profiler.record_function("step"):
            done = next(steps) is not None
            synchronize(engine.config.device)
        trace.export_chrome_trace(str(folder / f"{name}-{number}.json"))
        phases[f"step {number}"] = _by_kind(trace)
        number += 1
    engine.release_finished()
    return phases


def _by_kind(trace: profile) -> dict[str, float]:
    """Milliseconds of kernels by kind, and their number. On CPU there are none."""
    kinds = dict.fromkeys((*KINDS, "other"), 0.0)
    launches = 0
    for event in trace.key_averages():
        if not str(event.device_type).endswith("CUDA") or event.key.startswith(("step", "layer ")):
            continue
        key = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in key for word in words)), "other")
        kinds[kind] += event.self_device_time_total / 1e3
        launches += event.count
    return kinds | {"together": sum(kinds.values()), "kernels": launches}


@contextmanager
def layer_ranges(layers: nn.ModuleList) -> Iterator[None]:
    """Name each layer's launches in the profiler's trace and in NVTX while the context lasts."""
    on_gpu = torch.cuda.is_available()
    open_ranges: list[Any] = []

    def begin(layer: nn.Module, _inputs: object) -> None:
        name = f"layer {layer.index}"
        if on_gpu:
            torch.cuda.nvtx.range_push(name)
        open_ranges.append(torch.profiler.record_function(name))
        open_ranges[-1].__enter__()

    def end(_layer: nn.Module, _inputs: object, _output: object) -> None:
        open_ranges.pop().__exit__(None, None, None)
        if on_gpu:
            torch.cuda.nvtx.range_pop()

    hooks = [
        hook for layer in layers for hook in (layer.register_forward_pre_hook(begin), layer.register_forward_hook(end))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def profile_table(phases: dict[str, dict[str, float]], title: str) -> Table:
    """Kernel time by phase."""
    table = Table(title=title)
    table.add_column("phase")
    kinds = list(next(iter(phases.values())))
    for kind in kinds:
        table.add_column(kind, justify="right")
    for phase, times in phases.items():
        table.add_row(phase, *(f"{times[kind]:.0f}" if kind == "kernels" else f"{times[kind]:.2f}" for kind in kinds))
    return table
