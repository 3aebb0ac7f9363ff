"""Arrays as bytes. Positions and slots come in stretches, depths and flags in repeats: few numbers tell them."""

import numpy as np
import torch
from torch import Tensor

_INT = np.dtype("<i4")


def pack_stretches(values_N: np.ndarray) -> bytes:
    """Integers as stretches (first, count) of consecutive ones."""
    return _pack_runs(values_N, step=1)


def unpack_stretches(data: bytes) -> np.ndarray:
    """What `pack_stretches` took, int64."""
    firsts, counts = np.frombuffer(data, dtype=_INT).astype(np.int64).reshape(-1, 2).T
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(firsts - (ends - counts), counts)


def pack_repeats(values_N: np.ndarray) -> bytes:
    """Integers as repeats (value, count)."""
    return _pack_runs(values_N, step=0)


def unpack_repeats(data: bytes) -> np.ndarray:
    """What `pack_repeats` took, int64."""
    values, counts = np.frombuffer(data, dtype=_INT).astype(np.int64).reshape(-1, 2).T
    return np.repeat(values, counts)


def pack_ids(token_ids: list[int] | tuple[int, ...] | np.ndarray) -> bytes:
    """Token ids, or other integers one by one."""
    return np.asarray(token_ids, dtype=_INT).tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """What `pack_ids` took."""
    return np.frombuffer(data, dtype=_INT).tolist()


def pack_tensor(tensor: Tensor) -> bytes:
    """A tensor's numbers, in its dtype."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def unpack_tensor(data: bytes, dtype: torch.dtype, *shape: int) -> Tensor:
    """What `pack_tensor` took, in this shape (one size may be -1)."""
    if not data:
        return torch.empty(tuple(max(size, 0) for size in shape), dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


def _pack_runs(values_N: np.ndarray, *, step: int) -> bytes:
    """Integers as runs (first, count) in which each is `step` more than the one before."""
    if len(values_N) == 0:
        return b""
    starts = np.flatnonzero(np.diff(values_N, prepend=values_N[0] - step - 1) != step)
    counts = np.diff(starts, append=len(values_N))
    return np.stack([values_N[starts], counts], axis=1).astype(_INT).tobytes()
