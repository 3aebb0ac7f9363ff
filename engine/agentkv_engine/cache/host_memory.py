"""Host memory for KV that leaves the pool: a second pool of the same layout, page-locked where the first is on a GPU.

Shapes: N tokens of one resident.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.cache.free_blocks import FreeBlocks
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.errors import OutOfMemory
from agentkv_engine.memory_errors import is_out_of_memory
from agentkv_engine.reuse import Resident

ALIGNMENT = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostResident:
    """A resident in host memory: one K and V a token and layer, whatever runs and levels it had.

    Attributes:
        resident: as it was in the pool, and will be again.
        homes_N: positions at which its keys are rotated.
        blocks: where it lies in host memory.
        num_bytes: bytes of its blocks there.
    """

    resident: Resident
    homes_N: np.ndarray
    blocks: tuple[int, ...]
    num_bytes: int


class HostMemory:
    """Blocks of host memory beside one pool.

    Args:
        pool: the pool whose layout it has.
        num_bytes: how much to take, at once.

    Raises:
        OutOfMemory: that much can't be had, or not page-locked.
        ValueError: it holds no block.
    """

    def __init__(self, pool: KVPool, num_bytes: int) -> None:
        num_blocks = num_bytes // pool.block_bytes
        if num_blocks < 1:
            raise ValueError(f"host_kv_memory of {num_bytes} bytes holds no block: give at least {pool.block_bytes}")
        buffer = _Buffer((num_blocks + 1) * pool.block_bytes, locked=torch.device(pool.device).type == "cuda")
        self._buffer = buffer
        self._pool = pool
        self._host = pool.of_same_layout(num_blocks, buffer.take)
        self._free = FreeBlocks(num_blocks)
        self._last: int | None = None

    def save(
        self,
        resident: Resident,
        homes_N: np.ndarray,
        keys_of_layer: Sequence[Tensor],
        traces_of_layer: Sequence[Tensor],
    ) -> HostResident | None:
        """Copy a resident out of the pool; None where there is no room.

        Args:
            keys_of_layer, traces_of_layer: its slots in the pool, by layer, where its keys and its traces lie.
        """
        num_blocks = -(-resident.num_tokens // BLOCK_SIZE)
        if num_blocks > len(self._free):
            return None
        blocks = self._free.take(num_blocks, behind=self._last)  # neighbours are copied as one
        self._last = blocks[-1]
        saved = HostResident(
            resident=resident, homes_N=homes_N, blocks=tuple(blocks), num_bytes=num_blocks * self._pool.block_bytes
        )
        try:
            for layer in range(self._pool.num_layers):
                parts = self._pool.gather(layer, keys_of_layer[layer], traces_of_layer[layer])
                self._pool.transfers.save(lambda parts=parts, layer=layer: self._fill(layer, blocks, parts), parts)
        except Exception as error:
            self.free(saved)
            if not is_out_of_memory(error):
                raise
            return None  # the device has no room to gather it
        return saved

    def load(self, items: Sequence[HostResident], blocks: Sequence[int]) -> None:
        """Copy residents back into the pool, one after the other into these blocks of it, layer by layer.

        They come over in few large pieces and are put into their blocks on the device: the pool's are often scattered.
        """
        device_blocks = torch.tensor(blocks).to(self._pool.device)
        pieces = list(_stretches([block for item in items for block in item.blocks]))
        for layer in range(self._pool.num_layers):
            planes = tuple(zip(self._host.planes(layer), self._pool.planes(layer), strict=True))

            def copy(planes: tuple[tuple[Tensor, Tensor], ...] = planes) -> None:
                for source, target in planes:
                    host, pool = (plane.unflatten(0, (-1, BLOCK_SIZE)) for plane in (source, target))
                    staged = pool.new_empty(len(blocks), *pool.shape[1:])
                    for first, at, count in pieces:
                        staged[at : at + count].copy_(host[first : first + count], non_blocking=True)
                    pool.index_copy_(0, device_blocks, staged)

            self._pool.transfers.load(layer, copy, (device_blocks,))

    def free(self, saved: HostResident) -> None:
        """Give a resident's blocks back; copies under way are not harmed: later ones come after them."""
        for block in saved.blocks:
            self._free.add(block)

    def check(self, held: Sequence[HostResident]) -> None:
        """Integrity: these residents and the free blocks are all there is; raises AssertionError."""
        used = [block for saved in held for block in saved.blocks]
        assert sorted([*used, *self._free.ids()]) == list(range(self._host.num_blocks)), (
            "host blocks are lost or shared"
        )

    def _fill(self, layer: int, blocks: Sequence[int], parts: Sequence[Tensor]) -> None:
        for target, source in zip(self._host.planes(layer), parts, strict=True):
            for first, at, count in _stretches(blocks):
                piece = source[at * BLOCK_SIZE : (at + count) * BLOCK_SIZE]
                start = first * BLOCK_SIZE
                target[start : start + len(piece)].copy_(piece, non_blocking=True)


def slots_of(blocks: Sequence[int], num_tokens: int) -> np.ndarray:
    """The first `num_tokens` slots of these blocks."""
    return (np.asarray(blocks)[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)[:num_tokens]


def _stretches(blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Blocks that follow each other: (the first, its index, how many)."""
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    for start, end in pairwise([0, *breaks.tolist(), len(blocks)]):
        yield blocks[start], start, end - start


class _Buffer:
    """One piece of host memory, handed out from its start. torch's own allocator of page-locked memory rounds every
    piece up to a power of two."""

    def __init__(self, num_bytes: int, *, locked: bool) -> None:
        num_bytes += 64 * ALIGNMENT
        try:
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise _too_much(num_bytes, str(error)) from None
        self._taken = 0
        if locked:
            code = int(_cudart().cudaHostRegister(self._bytes.data_ptr(), num_bytes, 0))
            if code != 0:
                raise _too_much(num_bytes, f"cudaHostRegister: error {code}")
            weakref.finalize(self, _unlock, self._bytes).atexit = False

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The next piece, uninitialised."""
        num_bytes = prod(shape) * dtype.itemsize
        piece = self._bytes[self._taken : self._taken + num_bytes].view(dtype).view(shape)
        self._taken += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return piece


def _unlock(buffer: Tensor) -> None:
    _cudart().cudaHostUnregister(buffer.data_ptr())


def _cudart() -> Any:
    return torch.cuda.cudart()


def _too_much(num_bytes: int, reason: str) -> OutOfMemory:
    reason = reason.partition("\n")[0]
    return OutOfMemory(f"{num_bytes} bytes of host memory for KV can't be had ({reason}): lower --host-kv-memory")
