"""What a figure depends on beside the code measured: said in every result."""

import os
import platform

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
