"""What a forward pass is given: the rows of one step, sorted by depth, and where their keys lie.

Shapes: N rows of the step. A row of depth d writes K and V in layers 0..d and attends in layers 0..d-1.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agentkv_engine.attention.backend import AttentionBackend
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.operations import Operations, RowPlaces
from agentkv_engine.model.pooled import PooledRows


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRows:
    """Rows of a probe: their queries are recorded.

    Attributes:
        indices: ascending indices in the step, on the host.
        rows: the same on the device.
        into: for each of them, the row of the record it fills.
        queries_LRHD: [probe depth, probe rows, heads, head_dim]; the rows may run deeper, where the engine's levels
            round their depth up.
    """

    indices: Sequence[int]
    rows: Tensor
    into: Tensor
    queries_LRHD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The rows of one step. All counts are known on the host before the step runs.

    Attributes:
        token_ids_N: token of each row.
        places: where the rows stand, and where their keys go.
        writing, attending: rows that write, and rows that attend, in each layer.
        attention_of_layer: the back end's prepared metadata of each layer; layers of one level share it.
        logits_rows: indices of the rows whose logits are wanted, all of full depth.
        ends_early: the last layer's output is wanted of `logits_rows` alone: the others stop where they have written
            their K and V in it, and have left their queries if they are probed.
        recorded: the probes' rows.
        pooled: rows whose last hidden states are pooled.
        pool, backend: where keys lie, and what reads them.
        operations: what a layer runs between its matrix products.
    """

    token_ids_N: Tensor
    places: RowPlaces
    writing: tuple[int, ...]
    attending: tuple[int, ...]
    attention_of_layer: tuple[Any, ...]
    logits_rows: Tensor
    ends_early: bool
    pool: KVPool
    backend: AttentionBackend[Any]
    operations: Operations
    recorded: tuple[RecordedRows, ...] = ()
    pooled: tuple[PooledRows, ...] = ()

    def num_writing(self, layer: int) -> int:
        """Rows of depth >= layer: they have a hidden state here and write K and V."""
        return self.writing[layer]

    def num_attending(self, layer: int) -> int:
        """Rows of depth > layer: they go through this layer."""
        return self.attending[layer]

    def going_on(self, layer: int, x_WE: Tensor) -> Tensor:
        """Of the rows that write in this layer those that go through it."""
        if self.ends_early and layer == len(self.attending) - 1:
            return x_WE[self.logits_rows]
        return x_WE[: self.attending[layer]]

    def attention(self, layer: int) -> Any:
        """Prepared metadata of the rows that attend in this layer."""
        return self.attention_of_layer[layer]

    def record(self, layer: int, q_AHD: Tensor) -> None:
        """Record the queries, rotated at their positions, of the probes' rows among those that attend in this layer."""
        for record in self.recorded:
            count = bisect_left(record.indices, len(q_AHD))
            if count and layer < len(record.queries_LRHD):
                record.queries_LRHD[layer, record.into[:count]] = q_AHD[record.rows[:count]]
