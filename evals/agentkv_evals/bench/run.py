"""`agentkv bench`, once its options are read: runs one benchmark, shows its tables, writes its file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from agentkv.errors import ConfigError
from agentkv_engine.errors import OutOfMemory
from agentkv_evals.bench.decode import run_decode
from agentkv_evals.bench.fully_connected import run_agents
from agentkv_evals.bench.memory import run_memory
from agentkv_evals.bench.ttft import run_ttft
from agentkv_evals.comparison.environment import environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The command's options; empty lists take the benchmark's own defaults."""

    benchmark: str
    shape: str
    lengths: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    rule: str = "random"
    batches: tuple[int, ...] = (1, 8, 32, 64)
    tokens: int = 32
    threads: int = 16
    rounds: int = 5
    transformers: bool = False
    profile_to: Path | None = None
    from_host: bool = False
    device: str | None = None
    seed: int = 0
    json_file: Path | None = None


def run_benchmark(settings: Settings, console: Console | None = None) -> dict[str, Any]:
    """Run one benchmark; returns what is written to the file.

    Raises:
        ConfigError: options that do not fit each other, files that can't be written, or a device that is not here.
    """
    device = device_here(settings.device)
    for path in (settings.json_file, settings.profile_to and settings.profile_to / "trace.json"):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"can't write {path}: make the folder {path.parent} first")
    try:
        result = _run(settings, device, console or Console())
    except (torch.cuda.OutOfMemoryError, OutOfMemory) as error:
        reason = str(error).partition(".")[0]
        raise ConfigError(f"{settings.shape} does not fit ({reason}): take a smaller shape, length or batch") from None
    content = {
        "benchmark": settings.benchmark,
        "shape": settings.shape,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "environment": environment(),
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        **result,
    }
    if settings.json_file is not None:
        settings.json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def device_here(device: str | None) -> str:
    """The device that is named, else cuda where there is one. Raises ConfigError: it is not here."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} is not here: torch {torch.__version__} sees no CUDA device; give cpu")
    return device


def _run(settings: Settings, device: str, console: Console) -> dict[str, Any]:
    match settings.benchmark:
        case "ttft":
            return run_ttft(
                shape=settings.shape,
                lengths=settings.lengths or (2048,),
                ratios=settings.ratios or (0.02, 0.05, 0.1, 0.2),
                rule=settings.rule,
                rounds=settings.rounds,
                device=device,
                seed=settings.seed,
                profile_to=settings.profile_to,
                beside_transformers=settings.transformers,
                from_host=settings.from_host,
                console=console,
            )
        case "decode":
            return run_decode(
                shape=settings.shape,
                batches=settings.batches,
                context=_one_length(settings, 2048),
                num_tokens=settings.tokens,
                rounds=settings.rounds,
                device=device,
                seed=settings.seed,
                beside_transformers=settings.transformers,
                console=console,
            )
        case "agents":
            return run_agents(
                shape=settings.shape,
                ratios=settings.ratios or (0.05, 0.3),
                rule=settings.rule,
                rounds=settings.rounds,
                device=device,
                seed=settings.seed,
                console=console,
            )
        case "memory":
            return run_memory(
                shape=settings.shape,
                length=_one_length(settings, 8192),
                ratios=settings.ratios or (0.05,),
                threads=settings.threads,
                device=device,
                seed=settings.seed,
                console=console,
            )
    raise ConfigError(f"there is no benchmark {settings.benchmark!r}: take ttft, decode, agents or memory")


def _one_length(settings: Settings, default: int) -> int:
    if len(settings.lengths) > 1:
        raise ConfigError(f"{settings.benchmark} takes one --length, not {len(settings.lengths)}")
    return settings.lengths[0] if settings.lengths else default
