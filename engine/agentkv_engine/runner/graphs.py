"""Steps as CUDA graphs: a small step's launches cost the host more time than the device, a replay costs it almost none.

A graph is captured for a *size*: rows rounded up to a bucket, rounded room for keys, and few other things that decide
which kernels run. Everything else of a step is data in buffers that are refilled before each replay. Rows that pad a
bucket write to the pool's scratch slot and are read by nobody. Steps whose rows leave at several depths or are pooled,
large ones, and those that meet the memory budget run one launch after the other.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention.launch import refill, staging, upload
from agentkv_engine.attention.triton_rows import PreparedRows, Room, TritonRows
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.operations import Operations, RowPlaces
from agentkv_engine.model.step import RecordedRows, Step
from agentkv_engine.runner.forward import Forward
from agentkv_engine.runner.inputs import StepInput

MOST_ROWS = 1024
"""Rows of the largest step that is captured: larger ones keep the device busy anyway."""

MOST_GRAPHS = 64

FREE_FOR_CAPTURE = 1 << 30
"""Bytes of the device below which memory that torch holds in reserve is given back before a capture: it can't be during
one."""

Hidden = tuple[Tensor, Tensor | None]
Capture = Callable[[Callable[[], Hidden]], tuple[Hidden, Callable[[], None], int]]
"""Runs something and captures it: its results, what runs it again and puts new ones in their place, and the bytes of
memory that were taken for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSize:
    """What a captured graph is for: rows and their depth, those that go through the last layer (None: all), room for
    the keys of each list, and whether queries are recorded."""

    num_rows: int
    depth: int
    num_last: int | None
    rooms: tuple[Room, ...]
    list_of_layer: tuple[int, ...]
    records: bool


def bucket(num_rows: int) -> int:
    """Rows rounded up: powers of two up to 64, then multiples of 128, which is what matrix products are tiled by."""
    return 1 << (num_rows - 1).bit_length() if num_rows <= 64 else -(-num_rows // 128) * 128


def last_bucket(num_rows: int, num_logits: int) -> int:
    """Rows through the last layer of a step that ends early, rounded up to few sizes."""
    return next((size for size in (0, 8, 64) if num_logits <= size <= num_rows), num_rows)


class GraphForward:
    """Replays graphs, captured the second time that a size comes; everything else is `eager`'s.

    Args:
        eager: runs the other steps.
        memory: bytes that graphs may take; none are captured beyond.
        capture: how.
    """

    most_captured = MOST_ROWS

    def __init__(
        self,
        eager: Forward,
        decoder: Decoder,
        *,
        pool: KVPool,
        backend: TritonRows,
        operations: Operations,
        memory: int,
        capture: Capture,
    ) -> None:
        self._eager = eager
        self._decoder = decoder
        self._pool = pool
        self._backend = backend
        self._operations = operations
        self._memory = memory
        self._used = 0
        self._seen: OrderedDict[GraphSize, None] = OrderedDict()
        self._graphs: OrderedDict[GraphSize, _Graph] = OrderedDict()
        self._capture_with = capture
        self._prepared: tuple[StepInput, _Graph] | None = None

    @torch.inference_mode()
    def __call__(self, rows: StepInput | Step, before: Tensor | None = None) -> Tensor:
        """See `Forward`."""
        graph = self._replayed(rows, before)
        return self._eager(rows, before) if graph is None else graph.logits()

    @torch.inference_mode()
    def passed_on(self, rows: StepInput | Step, before: Tensor | None = None) -> Tensor:
        """See `Forward.passed_on`."""
        graph = self._replayed(rows, before)
        return self._eager.passed_on(rows, before) if graph is None else graph.passed_on()

    def ready(self, rows: StepInput) -> StepInput | Step:
        """See `Forward.ready`: a graph's buffers may be in use still."""
        return rows if self._may_replay(rows) else self._eager.ready(rows)

    @torch.inference_mode()
    def prepare(self, rows: StepInput) -> bool:
        """See `Forward.prepare`: where there is a graph, its buffers are filled behind what runs now."""
        size = self._size(rows) if self._may_replay(rows) else None
        if size not in self._graphs:
            return False
        self._graphs.move_to_end(size)
        graph = self._graphs[size]
        if not graph.fill(rows):
            return False
        self._prepared = (rows, graph)
        return True

    @property
    def num_graphs(self) -> int:
        """Graphs that are held."""
        return len(self._graphs)

    def _replayed(self, rows: StepInput | Step, before: Tensor | None) -> "_Graph | None":
        """The graph that has run a step; None where there is none, and nothing was done."""
        prepared, self._prepared = self._prepared, None
        if isinstance(rows, Step):
            return None
        if prepared is not None and prepared[0] is rows:
            graph = prepared[1]
            graph.fill_tokens(rows)
        else:
            graph = self._graph(rows, before)
            if graph is None or not graph.fill(rows):
                return None
        # A replay can't wait for KV on its way layer by layer, but saves more time than that would.
        self._pool.transfers.wait_for_all()
        graph.replay(rows, before)
        return graph

    def _graph(self, rows: StepInput, before: Tensor | None) -> "_Graph | None":
        if not self._may_replay(rows):
            return None
        size = self._size(rows)
        if size in self._graphs:
            self._graphs.move_to_end(size)
            return self._graphs[size]
        if size not in self._seen:
            self._seen[size] = None
            if len(self._seen) > 16 * MOST_GRAPHS:
                self._seen.popitem(last=False)
            return None
        return self._capture(size, rows, before)

    def _may_replay(self, rows: StepInput) -> bool:
        return rows.num_rows <= MOST_ROWS and rows.are_of_one_depth and not rows.pooled

    def _size(self, rows: StepInput) -> GraphSize:
        num_rows, num_logits = bucket(rows.num_rows), len(rows.logits_rows)
        return GraphSize(
            num_rows=num_rows,
            depth=sum(attending > 0 for attending in rows.attending),
            num_last=last_bucket(num_rows, num_logits) if rows.ends_early else None,
            rooms=tuple(self._backend.room_for(sequences) for sequences in rows.sequences),
            list_of_layer=rows.list_of_layer,
            records=bool(rows.probes),
        )

    def _capture(self, size: GraphSize, rows: StepInput, before: Tensor | None) -> "_Graph | None":
        """Capture a graph for a size; None, and no other try, where memory lacks or the size can't be reserved."""
        if self._used >= self._memory:
            return None
        try:
            reserved = [self._backend.reserve(size.num_rows, room) for room in size.rooms]
            if any(prepared is None for prepared in reserved):
                return None
            graph = _Graph(self._decoder, size, [p for p in reserved if p], self._pool, self._backend, self._operations)
            if not graph.fill(rows):
                return None
            graph.take(before)
            graph.capture(self._capture_with)
        except torch.cuda.OutOfMemoryError:
            self._memory = 0
            return None
        self._used += graph.num_bytes
        self._graphs[size] = graph
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return graph


class _Graph:
    """One captured graph with its buffers."""

    def __init__(
        self,
        decoder: Decoder,
        size: GraphSize,
        reserved: list[PreparedRows],
        pool: KVPool,
        backend: TritonRows,
        operations: Operations,
    ) -> None:
        self._decoder = decoder
        self._size = size
        self._reserved = reserved
        self._backend = backend
        self._rows_5N = torch.zeros(5, size.num_rows, dtype=torch.int64, device=pool.device)
        self._recorded: tuple[RecordedRows, ...] = ()
        if size.records:
            config, all_rows = decoder.config, torch.arange(size.num_rows, device=pool.device)
            shape = (decoder.num_layers, size.num_rows, config.num_heads, config.head_dim)
            queries = torch.empty(shape, dtype=pool.dtype, device=pool.device)
            indices = range(size.num_rows)
            self._recorded = (RecordedRows(indices=indices, rows=all_rows, into=all_rows, queries_LRHD=queries),)
        self._before: Tensor | None = None
        if not decoder.begins:
            self._before = torch.zeros(size.num_rows, decoder.config.hidden_size, dtype=pool.dtype, device=pool.device)
        self._pool = pool
        self._operations = operations
        self._num_logits = 0
        self._ends_early = size.num_last is not None
        self._hidden: Hidden | None = None
        self._replay: Callable[[], None] | None = None
        self._captured_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of its buffers, and those that its capture took beside what earlier ones had left."""
        metadata = [launch.flat for prepared in self._reserved for launch in prepared.launches]
        queries = [record.queries_LRHD for record in self._recorded]
        return self._captured_bytes + sum(buffer.nbytes for buffer in (self._rows_5N, *metadata, *queries))

    def fill(self, rows: StepInput) -> bool:
        """Put a step's data into the buffers; False where it does not fit."""
        pairs = zip(self._reserved, rows.sequences, strict=True)
        if not all(self._backend.refill(reserved, sequences) for reserved, sequences in pairs):
            return False
        staged = staging(5 * self._size.num_rows, torch.int64, self._pool.device)
        lines = staged.numpy().reshape(5, -1)
        lines[:] = 0
        lines[1] = self._pool.scratch_slot
        arrays = (rows.token_ids_N, rows.slots_N, rows.positions_N, rows.offsets_N, rows.logits_rows)
        for line, array in zip(lines, arrays, strict=True):
            line[: len(array)] = array
        refill(self._rows_5N.view(-1), staged)
        return True

    def fill_tokens(self, rows: StepInput) -> None:
        """Put in the token ids of a step whose other data is there."""
        staged = staging(rows.num_rows, torch.int64, self._pool.device)
        staged.numpy()[:] = rows.token_ids_N
        refill(self._rows_5N[0], staged)

    def capture(self, capture: Capture) -> None:
        """What the buffers hold is run for real; running it again writes the same."""
        self._hidden, self._replay, self._captured_bytes = capture(
            lambda: self._decoder.hidden(self._step(), self._before)
        )

    def take(self, before: Tensor | None) -> None:
        """Put in what comes out of the stage before."""
        if before is not None:
            assert self._before is not None
            self._before[: len(before)].copy_(before)

    def replay(self, rows: StepInput, before: Tensor | None) -> None:
        """Run the step, and hand recorded queries over to their probes."""
        assert self._replay is not None, "capture comes first"
        self.take(before)
        self._replay()
        self._num_logits = len(rows.logits_rows)
        for probe in rows.probes:
            at, into = upload(np.concatenate([probe.rows, probe.into]), self._pool.device).chunk(2)
            depth = len(probe.queries_LRHD)
            probe.queries_LRHD[:, into] = self._recorded[0].queries_LRHD[:depth, at]

    def passed_on(self) -> Tensor:
        """What comes out of the last layer, padded rows included; the next replay leaves it alone."""
        assert self._hidden is not None, "capture comes first"
        x, delta = self._hidden
        return x.clone() if delta is None else x + delta

    def logits(self) -> Tensor:
        """Logits of the rows that want some."""
        assert self._hidden is not None, "capture comes first"
        (x, delta), count = self._hidden, self._num_logits
        rows = self._rows_5N[4, :count]
        if self._ends_early:
            return self._decoder.logits(x[:count], None if delta is None else delta[:count], None, self._operations)
        return self._decoder.logits(x, delta, rows, self._operations)

    def _step(self) -> Step:
        rope, rows = self._decoder.rope, self._rows_5N
        prepared = [self._backend.with_turns(reserved) for reserved in self._reserved]
        num_rows, depth, num_layers = self._size.num_rows, self._size.depth, self._decoder.num_layers
        return Step(
            token_ids_N=rows[0],
            places=RowPlaces(slots_N=rows[1], rotation_N=rope.at_positions(rows[2]), home_N=rope.by_offsets(rows[3])),
            writing=tuple(num_rows if layer <= depth else 0 for layer in range(num_layers)),
            attending=tuple(num_rows if layer < depth else 0 for layer in range(num_layers)),
            attention_of_layer=tuple(prepared[number] for number in self._size.list_of_layer),
            logits_rows=rows[4, : self._size.num_last],
            ends_early=self._ends_early,
            pool=self._pool,
            backend=self._backend,
            operations=self._operations,
            recorded=self._recorded,
        )


def cuda_capture() -> Capture:
    """Captures CUDA graphs that share one memory pool: they are never run at once. Other threads may use the device.

    `torch.cuda.graph` would empty the allocators of both memories each time, which the steps that follow pay for."""
    shared, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(run: Callable[[], Hidden]) -> tuple[Hidden, Callable[[], None], int]:
        run()  # once before: kernels are compiled and loaded
        torch.cuda.synchronize()
        if torch.cuda.mem_get_info()[0] < FREE_FOR_CAPTURE:
            torch.cuda.empty_cache()
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
        with torch.cuda.stream(side):
            graph.capture_begin(pool=shared, capture_error_mode="thread_local")
            try:
                hidden = run()
            finally:
                graph.capture_end()
        return hidden, graph.replay, torch.cuda.memory_reserved() - before

    return capture
