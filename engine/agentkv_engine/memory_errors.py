"""Errors of torch and numpy for want of memory, as the engine's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from agentkv_engine.errors import OutOfMemory


def is_out_of_memory(error: Exception) -> bool:
    """Whether no memory was found: on a device, by numpy (types of their own), or by torch on the host (told by its
    words alone)."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


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
