"""From a schedule to a `Step`: rows sorted by depth, their slots, and the keys that each sequence's rows may see."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention.backend import AttentionBackend
from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.levels import Levels
from agentkv_engine.model.operations import Operations, RowPlaces
from agentkv_engine.model.pooled import PooledRows
from agentkv_engine.model.rope import RotaryEmbedding
from agentkv_engine.model.step import RecordedRows, Step
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput


@dataclass(frozen=True, slots=True)
class _RowOrder:
    """All rows of a step as flat arrays, in the order in which the forward pass runs them."""

    owner_N: np.ndarray
    index_N: np.ndarray  # among the owner's rows
    positions_N: np.ndarray
    depths_N: np.ndarray

    @classmethod
    def of(cls, schedule: SchedulerOutput) -> "_RowOrder":
        """Deepest first, then by sequence, then by position."""
        items = schedule.scheduled
        owner = np.repeat(np.arange(len(items)), [len(item.rows) for item in items])
        index = np.concatenate([np.arange(len(item.rows)) for item in items])
        positions = np.concatenate([item.rows.positions for item in items])
        depths = np.concatenate([item.rows.depths for item in items])
        order = np.lexsort((positions, owner, -depths))
        return cls(owner[order], index[order], positions[order], depths[order])


class InputBuilder:
    """Builds steps for one model and pool."""

    def __init__(
        self,
        *,
        pool: KVPool,
        backend: AttentionBackend[Any],
        operations: Operations,
        rope: RotaryEmbedding,
        levels: Levels,
        device: str,
    ) -> None:
        self._pool = pool
        self._backend = backend
        self._operations = operations
        self._rope = rope
        self._levels = levels
        self._device = device

    def build(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> Step:
        """The step of a schedule.

        Args:
            schedule: what to run; at least one row.
            assert_writable: integrity check of the slots that the rows write.
        """
        order = _RowOrder.of(schedule)
        items = schedule.scheduled
        slots, offsets = np.empty_like(order.positions_N), np.empty_like(order.positions_N)
        token_ids = np.empty_like(order.positions_N)
        for number, item in enumerate(items):
            mine = order.owner_N == number
            positions, residence = order.positions_N[mine], item.sequence.held
            complete = residence.table.has_keys_before(int(positions.max()) + 1)
            assert complete or residence.probe is not None, "a row would miss keys before it"
            slots[mine] = residence.own_P[positions]
            offsets[mine] = residence.table.offsets_at(positions)
            known = item.sequence.token_ids
            token_ids[mine] = [known[position] for position in positions.tolist()]
        assert_writable(slots)
        layers = range(self._levels.num_layers)
        return Step(
            token_ids_N=self._tensor(token_ids),
            places=RowPlaces(
                slots_N=self._tensor(slots),
                rotation_N=self._rope.at_positions(self._tensor(order.positions_N)),
                home_N=self._rope.by_offsets(self._tensor(offsets)) if offsets.any() else None,
            ),
            writing=tuple(int((order.depths_N >= layer).sum()) for layer in layers),
            attending=tuple(int((order.depths_N > layer).sum()) for layer in layers),
            attention_of_layer=self._attention(items, order),
            logits_rows=self._tensor(_logits_rows(items, order)),
            pool=self._pool,
            backend=self._backend,
            operations=self._operations,
            recorded=tuple(self._recorded(items, order)),
            pooled=tuple(self._pooled(items, order)),
        )

    def _recorded(self, items: tuple[ScheduledSeq, ...], order: _RowOrder) -> Iterator[RecordedRows]:
        """The rows of each probe that has some in this step."""
        for number, item in enumerate(items):
            probe = item.sequence.held.probe
            mine = np.flatnonzero(order.owner_N == number)
            rows = mine[item.rows.observed[order.index_N[mine]]]
            if probe is None or len(rows) == 0:
                continue
            yield RecordedRows(
                indices=rows.tolist(),
                rows=self._tensor(rows),
                into=self._tensor(probe.records[-1].row_of(order.positions_N[rows])),
                queries_LRHD=probe.records[-1].queries_LRHD,
            )

    def _pooled(self, items: tuple[ScheduledSeq, ...], order: _RowOrder) -> Iterator[PooledRows]:
        """All rows of the sequences that are pooled: they are of full depth."""
        for number, item in enumerate(items):
            if item.sequence.states is not None:
                rows = np.flatnonzero(order.owner_N == number)
                yield PooledRows(rows=self._tensor(rows), into=item.sequence.states)

    def _attention(self, items: tuple[ScheduledSeq, ...], order: _RowOrder) -> tuple[Any, ...]:
        """Metadata of each layer; layers with the same attending rows and the same slot list share it."""
        prepared: dict[tuple[int, int], Any] = {}
        of_layer = []
        for layer in range(self._levels.num_layers):
            key = (int((order.depths_N > layer).sum()), self._levels.list_of_layer(layer))
            if key not in prepared:
                sequences = [_sequence_rows(number, item, order, *key) for number, item in enumerate(items)]
                prepared[key] = self._backend.prepare([rows for rows in sequences if len(rows.rows)])
            of_layer.append(prepared[key])
        return tuple(of_layer)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _sequence_rows(
    number: int, item: ScheduledSeq, order: _RowOrder, num_attending: int, slot_list: int
) -> SequenceRows:
    rows = np.flatnonzero(order.owner_N[:num_attending] == number)
    positions = order.positions_N[rows]
    residence = item.sequence.held
    key_positions, key_slots, key_offsets = residence.table.readable(slot_list, int(positions.max(initial=-1)) + 1)
    return SequenceRows(
        rows=rows,
        positions=positions,
        key_slots=key_slots,
        key_positions=key_positions,
        key_offsets=key_offsets,
    )


def _logits_rows(items: tuple[ScheduledSeq, ...], order: _RowOrder) -> np.ndarray:
    """Rows whose logits are wanted, by sequence, in order of position."""
    wanted = []
    for number, item in enumerate(items):
        first = len(item.rows) - item.num_logits
        wanted.append(np.flatnonzero((order.owner_N == number) & (order.index_N >= first)))
    return np.concatenate(wanted)
