"""What a row depends on beside its item and arm: task and model, code, device."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import agentkv
import agentkv_engine
import agentkv_evals
from agentkv_evals.accuracy.tasks.task import Task
from agentkv_evals.comparison.environment import environment, processor

INFORMATIVE = frozenset({"commit", "model"})
"""What is recorded for readers only: `code` and `model_hash` say which results belong together."""


def provenance(model: Path, task: Task, *, device: str, batch: int) -> dict[str, Any]:
    """Recorded in every row."""
    packages = [Path(str(package.__file__)).parent for package in (agentkv, agentkv_engine, agentkv_evals)]
    return {
        "task": task.name,
        "task_version": task.version,
        "model": model.resolve().name,
        "model_hash": _hash(path for pattern in ("*.safetensors", "*.json") for path in model.glob(pattern)),
        "code": _hash(path for package in packages for path in package.rglob("*.py")),
        "commit": _commit(),
        "device": device,
        "processor": processor(device),
        "batch": batch,
        **environment(),
    }


def is_same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether rows of these two may stand side by side."""
    keys = (one.keys() | other.keys()) - INFORMATIVE
    return all(one.get(key) == other.get(key) for key in keys)


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """The commit of this source tree, marked `-dirty` when it was changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
