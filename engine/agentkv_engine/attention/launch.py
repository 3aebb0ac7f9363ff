"""One launch of row attention: its metadata as a single array, of the size of the work or of a reserved capacity.

A reserved launch has a fixed grid over arrays that are refilled before each run, so that a captured CUDA graph can be
replayed on other work; what the work does not use is padded with zeros, which do nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention.row_items import RowItems
from agentkv_engine.model.rope import Rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class TileShape:
    """Rows times heads of a tile, keys read at once, and how a program of them runs."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much work a launch takes; see `RowItems`."""

    items: int
    rows: int
    runs: int
    split_rows: int
    parts: int
    keys: int

    @classmethod
    def of(cls, work: RowItems) -> "Capacity":
        """Just enough."""
        return cls(
            items=len(work.items_I8),
            rows=len(work.rows_R),
            runs=len(work.offsets_U),
            split_rows=len(work.split_rows_X4),
            parts=work.num_parts,
            keys=len(work.key_slots_S),
        )

    def holds(self, other: "Capacity") -> bool:
        """Whether that much work fits."""
        return all(getattr(self, name) >= getattr(other, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch's metadata on the device (int32; see `RowItems`) and its sizes.

    Attributes:
        gathered: keys are gathered before they are read.
        turned: some run has an offset.
        flat: all arrays; those below are parts of it.
        turn_U: each run's rotation by its offset.
    """

    shape: TileShape
    tile_rows: int
    capacity: Capacity
    gathered: bool
    turned: bool
    flat: Tensor
    turn_U: Rotation

    def part(self, name: str) -> Tensor:
        """One of the arrays."""
        return self.flat[layout(self.capacity)[name]]


def layout(capacity: Capacity) -> dict[str, slice]:
    """Where each array lies; all start at multiples of 16 bytes: one compiled kernel serves all."""
    sizes = {
        "num_keys": 1,
        "items": 8 * capacity.items,
        "rows": capacity.rows,
        "key_ends": capacity.rows,
        "run_starts": capacity.runs + 1,
        "offsets": capacity.runs,
        "split_rows": 4 * capacity.split_rows,
        "key_slots": capacity.keys,
        "key_runs": capacity.keys,
    }
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = slice(start, start + size)
        start += -(-size // 4) * 4
    return parts


def packed(work: RowItems, capacity: Capacity, *, gathered: bool, device: str) -> Tensor:
    """The arrays of some work in a launch's layout, int32; without the last, where keys are not gathered. On the host,
    where the device can copy it from."""
    parts = layout(capacity)
    last = parts["key_runs"] if gathered else parts["key_slots"]
    staged = staging(last.start + len(work.key_slots_S), torch.int32, device)
    flat = staged.numpy()
    flat[: last.start] = 0
    arrays = {
        "num_keys": np.asarray([len(work.key_slots_S)]),
        "items": work.items_I8,
        "rows": work.rows_R,
        "key_ends": work.key_ends_R,
        "run_starts": work.run_starts_U1,
        "offsets": work.offsets_U,
        "split_rows": work.split_rows_X4,
        "key_slots": work.key_slots_S,
    }
    if gathered:
        arrays["key_runs"] = work.key_runs()
    for name, array in arrays.items():
        start = parts[name].start
        flat[start : start + array.size] = array.reshape(-1)
    return staged


def staging(size: int, dtype: torch.dtype, device: str) -> Tensor:
    """Host memory that is copied to the device without the host waiting."""
    return torch.empty(size, dtype=dtype, pin_memory=torch.device(device).type == "cuda")


def upload(array: np.ndarray, device: str) -> Tensor:
    """A copy on the device that the host need not wait for."""
    staged = staging(array.size, torch.from_numpy(array).dtype, device)
    staged.numpy()[:] = array
    return staged.to(device, non_blocking=True)


def refill(target: Tensor, staged: Tensor) -> None:
    """Copy `staging` memory into the first elements of a tensor on the device; the host need not wait."""
    target[: len(staged)].copy_(staged, non_blocking=True)
