"""A schedule's step on the host: rows sorted by depth, their slots, and the keys that each sequence's rows may see."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.cache.levels import Levels
from agentkv_engine.model.pooled import PooledStates
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput

NOT_KNOWN = 0
"""Stands for the id of a token that is still to be sampled."""


@dataclass(frozen=True, slots=True)
class _RowOrder:
    """All rows of a step as flat arrays, in the order in which the forward pass runs them."""

    owner_N: np.ndarray
    index_N: np.ndarray  # among the owner's rows
    positions_N: np.ndarray
    depths_N: np.ndarray

    @classmethod
    def of(cls, schedule: SchedulerOutput, *, most_deepened: int) -> "_RowOrder":
        """Deepest first, then by sequence, then by position. In a step of at most `most_deepened` rows all are as deep
        as the deepest: what shallow rows write further up is theirs, and nobody reads it."""
        items = schedule.scheduled
        owner = np.repeat(np.arange(len(items)), [len(item.rows) for item in items])
        index = np.concatenate([np.arange(len(item.rows)) for item in items])
        positions = np.concatenate([item.rows.positions for item in items])
        depths = np.concatenate([item.rows.depths for item in items])
        if len(depths) <= most_deepened:
            depths = np.full_like(depths, depths.max())
        order = np.lexsort((positions, owner, -depths))
        return cls(owner[order], index[order], positions[order], depths[order])

    def by_owner(self, num_rows: int, num_owners: int) -> list[np.ndarray]:
        """Of the first rows those of each owner, ascending."""
        owner = self.owner_N[:num_rows]
        counts = np.bincount(owner, minlength=num_owners)
        return np.split(np.argsort(owner, kind="stable"), np.cumsum(counts)[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRows:
    """Observed rows of one sequence among those of a step: their indices, and the rows of the record that they fill."""

    rows: np.ndarray
    into: np.ndarray
    queries_LRHD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """A step on the host. Rows are sorted: deepest first, then by sequence, then by position.

    Attributes:
        token_ids_N, slots_N, positions_N: of each row.
        offsets_N: of the run in which it stands; 0 for fresh rows.
        writing, attending: rows that write, and rows that attend, in each layer.
        sequences: rows that attend and keys that they may see, by sequence; one list for each way in which layers
            differ.
        list_of_layer: which of these lists is a layer's.
        logits_rows: rows whose logits are wanted, by sequence, in order of position.
        ends_early: no others attend in the last layer, since nothing reads what comes out of it; the rows in the last
            layer's list are indices of `logits_rows`.
        probes: rows whose queries are recorded.
        pooled: rows whose last hidden states are pooled, and where; they are of full depth.
    """

    token_ids_N: np.ndarray
    slots_N: np.ndarray
    positions_N: np.ndarray
    offsets_N: np.ndarray
    writing: tuple[int, ...]
    attending: tuple[int, ...]
    sequences: tuple[list[SequenceRows], ...]
    list_of_layer: tuple[int, ...]
    logits_rows: np.ndarray
    ends_early: bool
    probes: tuple[ProbeRows, ...]
    pooled: tuple[tuple[np.ndarray, PooledStates], ...]

    @property
    def num_rows(self) -> int:
        """All rows."""
        return len(self.token_ids_N)

    @property
    def are_of_one_depth(self) -> bool:
        """Whether all rows leave together."""
        return set(self.attending) <= {0, self.num_rows}


class InputBuilder:
    """Builds steps' inputs for one engine.

    Args:
        levels: the engine's.
        most_deepened: rows of a step that runs as a whole, whatever their depths: a captured graph costs less than what
            leaving early spares.
        reads_last_layer: all rows attend in the last layer whether or not their logits are wanted: it is traced.
    """

    def __init__(self, levels: Levels, *, most_deepened: int, reads_last_layer: bool) -> None:
        self._levels = levels
        self._most_deepened = most_deepened
        self._reads_last_layer = reads_last_layer

    def build(self, schedule: SchedulerOutput, assert_writable: Callable[[np.ndarray], None]) -> StepInput:
        """The input of a schedule's step.

        Args:
            schedule: what to run; at least one row.
            assert_writable: integrity check of the slots that the rows write.
        """
        order = _RowOrder.of(schedule, most_deepened=self._most_deepened)
        items = schedule.scheduled
        slots, offsets = np.empty_like(order.positions_N), np.empty_like(order.positions_N)
        token_ids = np.empty_like(order.positions_N)
        rows_of = order.by_owner(len(order.owner_N), len(items))
        for item, mine in zip(items, rows_of, strict=True):
            positions, residence = order.positions_N[mine], item.sequence.held
            slots[mine] = residence.own_P[positions]
            offsets[mine] = residence.table.offsets_at(positions)
            known = item.sequence.token_ids
            token_ids[mine] = _ids_at(known, positions)
        assert_writable(slots)
        layers = np.arange(self._levels.num_layers)
        deepest_first = -order.depths_N
        attending = np.searchsorted(deepest_first, -layers, side="left").tolist()
        logits_rows, states = _logits_rows(items, order), [item.sequence.states for item in items]
        ends_early = len(logits_rows) < attending[-1] and not (self._reads_last_layer or any(states))
        sequences, list_of_layer = self._sequences(items, order, attending, rows_of)
        if ends_early:
            sequences = (*sequences, self._last_sequences(items, order, logits_rows))
            list_of_layer = (*list_of_layer[:-1], len(sequences) - 1)
        return StepInput(
            token_ids_N=token_ids,
            slots_N=slots,
            positions_N=order.positions_N,
            offsets_N=offsets,
            writing=tuple(np.searchsorted(deepest_first, -layers, side="right").tolist()),
            attending=tuple(attending),
            sequences=sequences,
            list_of_layer=list_of_layer,
            logits_rows=logits_rows,
            ends_early=ends_early,
            probes=tuple(_probe_rows(items, order, rows_of)),
            pooled=tuple((mine, into) for into, mine in zip(states, rows_of, strict=True) if into),
        )

    def _sequences(
        self,
        items: tuple[ScheduledSeq, ...],
        order: _RowOrder,
        attending: list[int],
        all_rows_of: list[np.ndarray],
    ) -> tuple[tuple[list[SequenceRows], ...], tuple[int, ...]]:
        """Layers with the same attending rows and the same slot list share a list."""
        number_of: dict[tuple[int, int], int] = {}
        lists, of_layer = [], []
        for layer, num_attending in enumerate(attending):
            key = (num_attending, self._levels.list_of_layer(layer))
            if key not in number_of:
                number_of[key] = len(lists)
                everyone = num_attending == len(order.owner_N)
                rows_of = all_rows_of if everyone else order.by_owner(num_attending, len(items))
                lists.append(
                    [
                        _sequence_rows(i, rows, order, key[1])
                        for i, rows in zip(items, rows_of, strict=True)
                        if len(rows)
                    ]
                )
            of_layer.append(number_of[key])
        return tuple(lists), tuple(of_layer)

    def _last_sequences(
        self, items: tuple[ScheduledSeq, ...], order: _RowOrder, logits_rows: np.ndarray
    ) -> list[SequenceRows]:
        """The list of the last layer of a step that ends early."""
        ends = np.cumsum([item.num_logits for item in items])
        slot_list = self._levels.list_of_layer(self._levels.num_layers - 1)
        return [
            _sequence_rows(item, logits_rows[into], order, slot_list, into)
            for item, into in zip(items, np.split(np.arange(len(logits_rows)), ends[:-1]), strict=True)
            if len(into)
        ]


def _ids_at(known: list[int], positions: np.ndarray) -> list[int] | np.ndarray:
    """Ids of the tokens at these positions."""
    if len(positions) == 1:
        return [known[positions[0]] if positions[0] < len(known) else NOT_KNOWN]
    return np.frombuffer(array("q", known), dtype=np.int64)[positions]


def _sequence_rows(
    item: ScheduledSeq, rows: np.ndarray, order: _RowOrder, slot_list: int, into: np.ndarray | None = None
) -> SequenceRows:
    """Rows of one sequence, with the keys that they see; `into` says which rows of the layer they are, if not these."""
    positions, residence = order.positions_N[rows], item.sequence.held
    end = int(positions[-1] if len(rows) == 1 else positions.max()) + 1
    key_positions, key_slots, key_offsets = residence.table.readable(slot_list, end)
    assert len(key_positions) == end or residence.probe is not None, "a row would miss keys before it"
    return SequenceRows(
        rows=rows if into is None else into,
        positions=positions,
        key_slots=key_slots,
        key_positions=key_positions,
        key_offsets=key_offsets,
    )


def _probe_rows(items: tuple[ScheduledSeq, ...], order: _RowOrder, rows_of: list[np.ndarray]) -> Iterator[ProbeRows]:
    """The observed rows of each sequence that has some in this step."""
    for item, mine in zip(items, rows_of, strict=True):
        if item.record is None:
            continue
        rows = mine[item.rows.observed[order.index_N[mine]]]
        if len(rows):
            into = item.record.row_of(order.positions_N[rows])
            yield ProbeRows(rows=rows, into=into, queries_LRHD=item.record.queries_LRHD)


def _logits_rows(items: tuple[ScheduledSeq, ...], order: _RowOrder) -> np.ndarray:
    first_N = np.asarray([len(item.rows) - item.num_logits for item in items])[order.owner_N]
    wanted = np.flatnonzero(order.index_N >= first_N)
    return wanted[np.lexsort((order.index_N[wanted], order.owner_N[wanted]))]
