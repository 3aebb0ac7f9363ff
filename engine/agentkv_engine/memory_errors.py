"""Errors of torch and numpy for want of memory, as the engine's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from agentkv_engine.errors import OutOfMemory

_WORDS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether no memory was found: by torch on a device or by numpy (types of their own), by torch on the host, CUDA,
    cuBLAS or Triton (told by their words alone)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def out_of_memory(error: Exception, what: str, remedy: str) -> OutOfMemory:
    """The typed error: what there was no memory for, their reason, and the remedy."""
    lines = str(error).partition("\n")[0].partition("DefaultCPUAllocator: ")
    reason = (lines[2] or lines[0]).rstrip(".")
    return OutOfMemory(f"out of memory {what} ({reason[:200]}): {remedy}")


@contextmanager
def memory_needed(what: str, remedy: str) -> Iterator[None]:
    """What is done here takes memory. Raises OutOfMemory: there is too little."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, what, remedy) from None
