"""Kept KV by handle: what the middleware calls segments, and how it leaves the pool and comes back.

Shapes: L layers, N tokens, K kv heads, D head dimension.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.host_memory import HostMemory, HostResident, slots_of
from agentkv_engine.cache.key_table import Keys
from agentkv_engine.cache.kv_layers import KVLayers
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.row_traces import Traces
from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.errors import RequestRefused, UnknownHandle
from agentkv_engine.memory_errors import is_out_of_memory
from agentkv_engine.reuse import PlacedSpan, Resident


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentTensors:
    """A resident outside the pool: one K and V a token and layer, whatever runs and levels it had.

    Attributes:
        token_ids: the tokens.
        exact, hops: as in `Resident`.
        homes_N: int64, the position at which each K is rotated.
        k_LNKD, v_LNKD: on CPU, in the pool's dtype.
        traces: by layer, what the rows left in the layers that the pool traces.
    """

    token_ids: tuple[int, ...]
    exact: bool
    hops: int
    homes_N: Tensor
    k_LNKD: Tensor
    v_LNKD: Tensor
    traces: Mapping[int, Traces] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Kept:
    resident: Resident
    keys: Keys  # as seen by a reader that has the first token at position 0


class Residents:
    """The registry of kept KV. Handles are keeper ids of the block pool.

    Args:
        on_evict: called with the handle of a resident that is about to be evicted; it can still be copied out.
        on_missing: called with handles that a request wants to read and that are not here; it may `restore` them.
        host: where residents can be copied to; None where there is no such memory.
    """

    def __init__(
        self,
        pool: BlockPool,
        tensors: KVLayers,
        levels: Levels,
        on_evict: Callable[[int], None],
        on_missing: Callable[[Sequence[int]], None] = lambda _handles: None,
        host: HostMemory | None = None,
    ) -> None:
        self._pool = pool
        self._tensors = tensors
        self._levels = levels
        self._on_evict = on_evict
        self._on_missing = on_missing
        self._host = host
        self._is_lost = False
        self._kept: dict[int, _Kept] = {}

    def __contains__(self, handle: int | None) -> bool:
        return handle in self._kept

    def keep(self, token_ids: tuple[int, ...], keys: Keys, start: int, *, exact: bool, hops: int) -> Resident:
        """Keep the keys that a sequence has at positions start..; nothing is copied."""
        handle = self._hold(keys)
        resident = Resident(handle=handle, token_ids=token_ids, exact=exact, hops=hops)
        self._kept[handle] = _Kept(resident, keys.moved(-start))
        return resident

    def keys_for(self, span: PlacedSpan) -> Keys:
        """The keys of a placed span, as its reader sees them."""
        kept = self._find(span.handle)
        first = span.resident_start
        return kept.keys[first : first + span.num_tokens].moved(span.start - first)

    def tokens_of(self, span: PlacedSpan) -> tuple[int, ...]:
        """The token ids that a placed span would read; shorter than the span where the resident ends before it."""
        return self._find(span.handle).resident.token_ids[span.resident_start : span.resident_start + span.num_tokens]

    def hops_of(self, span: PlacedSpan) -> int:
        """Hops of the resident behind a placed span."""
        return self._find(span.handle).resident.hops

    def touch(self, handle: int) -> None:
        """It was read."""
        self._pool.touch(handle)

    def release(self, handle: int) -> None:
        """Give a resident up. Running sequences that read it go on; `on_evict` is not called.

        Raises:
            UnknownHandle: it is not there (any more).
        """
        self._find(handle)
        del self._kept[handle]
        self._pool.drop(handle)

    def drop_all(self) -> None:
        """The KV is gone: every resident is evicted, and can't be copied out any more."""
        self._is_lost = True
        try:
            for handle in list(self._kept):
                self._pool.drop(handle)
        finally:
            self._is_lost = False

    def num_bytes(self, handle: int) -> int:
        """Bytes of the blocks behind a resident, shared ones included."""
        self._find(handle)
        return len(self._pool.blocks_of(handle)) * self._tensors.block_bytes

    def export(self, handle: int) -> ResidentTensors:
        """Copy a resident out of the pool."""
        kept = self._find(handle)
        layers = [
            self._tensors.read(layer, self._device_slots(kept.keys.slots_KN[self._levels.list_of_layer(layer)]))
            for layer in range(self._tensors.num_layers)
        ]
        return ResidentTensors(
            token_ids=kept.resident.token_ids,
            exact=kept.resident.exact,
            hops=kept.resident.hops,
            homes_N=torch.from_numpy(_homes(kept.keys)),
            k_LNKD=torch.stack([k for k, _ in layers]).cpu(),
            v_LNKD=torch.stack([v for _, v in layers]).cpu(),
            traces=self._traces_of(kept.keys),
        )

    def load(self, tensors: ResidentTensors) -> Resident:
        """Bring an exported resident back into the pool.

        Raises:
            RequestRefused: the pool has no room for it, or another shape.
        """
        num_tokens = len(tensors.token_ids)
        self._check(tensors)
        blocks = self._pool.allocate(-(-num_tokens // BLOCK_SIZE))
        if blocks is None:
            raise RequestRefused(f"no room to load {num_tokens} tokens of KV: release residents or raise kv_memory")
        try:
            slots = slots_of(blocks, num_tokens)
            self._write(tensors, self._device_slots(slots))
            keys = self._keys_at(slots, tensors.homes_N.numpy())
            return self.keep(tensors.token_ids, keys, 0, exact=tensors.exact, hops=tensors.hops)
        finally:
            self._pool.unpin(blocks)

    @property
    def can_fetch(self) -> bool:
        """Whether residents that left may come back."""
        return self._host is not None

    def fetch(self, handles: Sequence[int]) -> None:
        """Those that are wanted and not here may be brought back now; those that are here count as read first, so that
        they are the last to make room."""
        for handle in handles:
            if handle in self._kept:
                self.touch(handle)
        self._on_missing([handle for handle in handles if handle not in self._kept])

    def offload_bytes(self, handle: int) -> int:
        """Bytes of host memory that a resident takes."""
        return -(-self._find(handle).resident.num_tokens // BLOCK_SIZE) * self._tensors.block_bytes

    def offload(self, handle: int) -> HostResident | None:
        """Copy a resident to host memory; None where there is no room, or its KV is gone."""
        if self._host is None or self._is_lost:
            return None
        kept = self._find(handle)
        slots = [self._device_slots(each) for each in kept.keys.slots_KN]
        layers = range(self._tensors.num_layers)
        return self._host.save(
            kept.resident,
            _homes(kept.keys),
            [slots[self._levels.list_of_layer(layer)] for layer in layers],
            [slots[self._levels.list_of_queries(layer)] for layer in layers],
        )

    def restore(self, items: Sequence[HostResident]) -> tuple[Resident, ...]:
        """Bring residents back under their handles, all or (where there is no room) none. They can be read at once:
        readers wait, layer by layer, for what is still on its way."""
        assert self._host is not None, "there is no host memory"
        counts = [-(-item.resident.num_tokens // BLOCK_SIZE) for item in items]
        blocks = self._pool.allocate(sum(counts))
        if blocks is None:
            return ()
        ends = np.cumsum(counts)
        slots = [
            slots_of(blocks[end - count : end], item.resident.num_tokens)
            for item, count, end in zip(items, counts, ends.tolist(), strict=True)
        ]
        try:
            self._host.load(items, blocks)
            for item, here in zip(items, slots, strict=True):
                keys, handle = self._keys_at(here, item.homes_N), item.resident.handle
                self._hold(keys, handle)
                self._kept[handle] = _Kept(item.resident, keys)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return ()  # the device has no room for the copies
        finally:
            self._pool.unpin(blocks)
        return tuple(item.resident for item in items)

    def discard(self, item: HostResident) -> None:
        """Free a resident's host memory."""
        assert self._host is not None, "there is no host memory"
        self._host.free(item)

    def _hold(self, keys: Keys, handle: int | None = None) -> int:
        """Hold the blocks behind these keys, under an earlier handle where one is given."""
        held = self._pool.keep(
            np.unique(keys.slots_KN // BLOCK_SIZE).tolist(), lambda: self._dropped(held), keeper_id=handle
        )
        self._pool.seal(keys.slots_KN)
        return held

    def _write(self, tensors: ResidentTensors, slots: Tensor) -> None:
        for layer in range(self._tensors.num_layers):
            k, v = tensors.k_LNKD[layer], tensors.v_LNKD[layer]
            self._tensors.write(layer, slots, k.to(slots.device), v.to(slots.device))
        if (store := self._tensors.traces) is not None:
            for layer in store.layers:
                store.restore(layer, slots, tensors.traces[layer].to(self._tensors.device))

    def _keys_at(self, slots_N: np.ndarray, homes_N: np.ndarray) -> Keys:
        """Keys that lie at the same slots in every layer."""
        return Keys(np.tile(slots_N, (len(self._levels), 1)), np.arange(len(slots_N)) - homes_N)

    def _check(self, tensors: ResidentTensors) -> None:
        here = (self._tensors.num_layers, len(tensors.token_ids), *self._tensors.head_shape)
        for given in (tensors.k_LNKD, tensors.v_LNKD):
            if tuple(given.shape) != here or given.dtype != self._tensors.dtype:
                raise RequestRefused(
                    f"KV of shape {tuple(given.shape)} and {given.dtype} can't be loaded: this pool holds {here} and "
                    f"{self._tensors.dtype}; export it from an engine of the same model and dtype"
                )
        traces = self._tensors.traces
        wanted = traces.layers if traces is not None else ()
        here = len(tensors.token_ids)
        if traces is not None and not all(
            layer in tensors.traces and traces.fits(layer, tensors.traces[layer], here) for layer in wanted
        ):
            raise RequestRefused(
                f"this pool traces layers {wanted} and the KV to load brings layers {tuple(tensors.traces)}, or "
                "traces of another shape: export it from an engine of the same model with the same trace_layers"
            )

    def _traces_of(self, keys: Keys) -> Mapping[int, Traces]:
        """What the rows left in the traced layers: those that attended there."""
        store = self._tensors.traces
        if store is None:
            return {}
        slots = {layer: keys.slots_KN[self._levels.list_of_queries(layer)] for layer in store.layers}
        return {layer: store.read(layer, self._device_slots(here)).to("cpu") for layer, here in slots.items()}

    def _find(self, handle: int | None) -> _Kept:
        if handle is None or handle not in self._kept:
            raise UnknownHandle(f"no resident has handle {handle}: it was released or evicted")
        return self._kept[handle]

    def _dropped(self, handle: int) -> None:
        if handle in self._kept:
            try:
                self._on_evict(handle)
            finally:
                del self._kept[handle]

    def _device_slots(self, slots: np.ndarray) -> Tensor:
        return torch.from_numpy(slots).to(self._tensors.device)


def _homes(keys: Keys) -> np.ndarray:
    """Positions at which these keys are rotated."""
    return np.arange(len(keys)) - keys.offsets_N
