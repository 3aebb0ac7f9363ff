"""What a figure depends on beside the code measured: said in every result."""

import os
import platform
from pathlib import Path

import torch

import agentkv


def environment() -> dict[str, str | int]:
    """Versions and hardware of this process."""
    return {
        "agentkv": agentkv.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def processor(device: str) -> str:
    """The name of what computes: the GPU's, else the CPU's where the system tells it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
