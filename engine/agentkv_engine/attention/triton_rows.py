"""Row attention by Triton kernels: all sequences of a step at once, nothing compiled in but the model's shape.

Sequences of few rows (decodes) and of many get tiles of their own, so a step has at most two launches. Few rows read
keys where they lie, at home + offset, and are turned instead, once a run:
<R(p) q, R(home + offset) k> = <R(-offset) R(p) q, R(home) k>. For many rows a layer's keys are gathered and turned
once into scratch: that costs a pass over them and spares every tile the runs.

Where a sequence's rows are all of its positions and its keys have no offset (a fresh prefill in one chunk), torch's own
attention is faster and is used.

Shapes: A attending rows, S keys, U runs, H heads, K kv heads, D head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention import triton_kernels
from agentkv_engine.attention.launch import Capacity, Launch, TileShape, layout, packed, refill, upload
from agentkv_engine.attention.row_items import RowItems, row_items
from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.attention.sdpa import torch_attention
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.rope import RotaryEmbedding

FEWEST_DENSE = 128
"""Rows of a fresh prefill from which torch's attention is used."""

MOST_GATHERED = 1 << 17
"""Keys of a launch that are gathered at once; above, they are read where they lie."""

GATHER_BLOCK, GATHER_PROGRAMS = 32, 256
RUN_KEYS = 16
"""Fewest keys of a run, on average, for which a captured step reserves room."""

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A sequence whose rows are all of its positions, without offsets."""

    rows: slice
    key_slots: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRows:
    """What `TritonRows.attend` runs."""

    launches: tuple[Launch, ...]
    dense: tuple[Dense, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is reserved for a step's attention: keys of sequences of few rows and of many, and whether any is turned."""

    few_keys: int
    many_keys: int
    turned: bool


class TritonRows:
    """Attention back end for devices that Triton compiles for (its interpreter runs it on CPU, slowly).

    Args:
        rope: whose turns queries and keys take.
        num_heads, num_kv_heads, head_dim: of the model; the head dimension is a power of two of at least 16.
        dtype: of queries and keys.
        device: where they lie.
        dense: whether torch's attention takes fresh prefills.
        most_gathered: see `MOST_GATHERED`.
    """

    def __init__(
        self,
        rope: RotaryEmbedding,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: str,
        dense: bool = True,
        most_gathered: int = MOST_GATHERED,
    ) -> None:
        self._rope = rope
        self._heads = (num_heads, num_kv_heads, head_dim)
        self._group_pad = 1 << (num_heads // num_kv_heads - 1).bit_length()
        self._exact = dtype == torch.float32
        self._device = device
        self._dense = dense
        self._most_gathered = most_gathered
        on_gpu = torch.device(device).type == "cuda"
        processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 2
        self._few_items, self._many_items = (-(-waves * processors // num_kv_heads) for waves in (14, 4))
        self._few_rows = self._tile_rows(self.few_shape())

    def prepare(self, sequences: Sequence[SequenceRows]) -> PreparedRows:
        """See `AttentionBackend.prepare`. One copy to the device a launch."""
        dense = [sequence for sequence in sequences if self._dense and _is_dense(sequence)]
        others = [sequence for sequence in sequences if not (self._dense and _is_dense(sequence))]
        few, many = self._by_rows(others)
        launches = []
        if few:
            launches.append(self._launch(few, self.few_shape(), gathered=False))
        if many:
            most_rows = max(len(sequence.rows) for sequence in many)
            gathered = sum(len(sequence.key_slots) for sequence in many) <= self._most_gathered
            launches.append(self._launch(many, self.many_shape(most_rows, gathered=gathered), gathered=gathered))
        return PreparedRows(
            launches=tuple(launches),
            dense=tuple(
                Dense(rows=slice(int(s.rows[0]), int(s.rows[-1]) + 1), key_slots=upload(s.key_slots, self._device))
                for s in dense
            ),
        )

    def room_for(self, sequences: Sequence[SequenceRows]) -> Room:
        """Room that a step like this one needs, keys rounded up so that like steps need the same."""
        few, many = self._by_rows(sequences)
        return Room(
            few_keys=_rounded_up(sum(len(sequence.key_slots) for sequence in few)),
            many_keys=_rounded_up(sum(len(sequence.key_slots) for sequence in many)),
            turned=any(bool(sequence.key_offsets.any()) for sequence in sequences),
        )

    def reserve(self, num_rows: int, room: Room) -> PreparedRows | None:
        """Launches of fixed size over arrays to be refilled; None where there are too many keys to gather."""
        if room.many_keys > self._most_gathered:
            return None
        launches = []
        if room.few_keys:
            launches.append(self._reserved(num_rows, num_rows, room.few_keys, self.few_shape(), room, gathered=False))
        if room.many_keys:
            shape = self.many_shape(num_rows, gathered=True)
            tiles = -(-num_rows // self._tile_rows(shape)) + 8
            launches.append(self._reserved(num_rows, tiles, room.many_keys, shape, room, gathered=True))
        return PreparedRows(launches=tuple(launches), dense=())

    def refill(self, reserved: PreparedRows, sequences: Sequence[SequenceRows]) -> bool:
        """Put this step's work into reserved launches; False, and nothing done, where it does not fit."""
        groups = [group for group in self._by_rows(sequences) if group]
        pairs = [
            (self._work(group, launch.tile_rows, gathered=launch.gathered), launch)
            for group, launch in zip(groups, reserved.launches, strict=True)
        ]
        if not all(launch.capacity.holds(Capacity.of(work)) for work, launch in pairs):
            return False
        for work, launch in pairs:
            refill(launch.flat, packed(work, launch.capacity, gathered=launch.gathered, device=self._device))
        return True

    def with_turns(self, reserved: PreparedRows) -> PreparedRows:
        """The same, whose turns are computed here from the offsets that were put in: to be captured with the step."""
        launches = [replace(x, turn_U=self._rope.by_offsets(x.part("offsets"))) for x in reserved.launches]
        return replace(reserved, launches=tuple(launches))

    def attend(self, q_AHD: Tensor, layer: int, pool: KVPool, prepared: PreparedRows) -> Tensor:
        """See `AttentionBackend.attend`. Waits for nothing."""
        q_AHD = q_AHD.contiguous()
        if not prepared.launches and len(prepared.dense) == 1:  # nothing else in the step: no copy
            return torch_attention(q_AHD, *pool.read(layer, prepared.dense[0].key_slots), None).contiguous()
        out_AHD = torch.empty_like(q_AHD)
        for sequence in prepared.dense:
            k_SKD, v_SKD = pool.read(layer, sequence.key_slots)
            out_AHD[sequence.rows] = torch_attention(q_AHD[sequence.rows], k_SKD, v_SKD, None)
        for launch in prepared.launches:
            self._run(launch, q_AHD, out_AHD, *pool.stored(layer))
        return out_AHD

    def few_shape(self) -> TileShape:
        """Tiles for sequences of few rows: the fastest of those measured on an H100 (evals/LOG.md)."""
        block_m = max(16, self._group_pad)
        return self._fitted(block_m, 64, 2, 4)

    def many_shape(self, num_rows: int, *, gathered: bool) -> TileShape:
        """Tiles for sequences of at most `num_rows` rows, likewise."""
        if num_rows < 1024:
            return self._fitted(max(64, self._group_pad), 64, 4, 3)
        return self._fitted(max(128, self._group_pad), 64, 8 if gathered else 4, 3)

    def _fitted(self, block_m: int, block_n: int, num_warps: int, num_stages: int) -> TileShape:
        if self._exact:  # four bytes a number: shared memory holds half as many
            block_m, block_n, num_warps, num_stages = min(block_m, max(32, self._group_pad)), 32, 4, 2
        if self._heads[2] > 128:
            block_n //= 2
        return TileShape(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)

    def _tile_rows(self, shape: TileShape) -> int:
        return shape.block_m // self._group_pad

    def _by_rows(self, sequences: Sequence[SequenceRows]) -> tuple[list[SequenceRows], list[SequenceRows]]:
        few = [sequence for sequence in sequences if len(sequence.rows) <= self._few_rows]
        return few, [sequence for sequence in sequences if len(sequence.rows) > self._few_rows]

    def _work(self, sequences: Sequence[SequenceRows], tile_rows: int, *, gathered: bool) -> RowItems:
        return row_items(sequences, tile_rows=tile_rows, num_items=self._most_items(gathered=gathered))

    def _most_items(self, *, gathered: bool) -> int:
        """Items up to which the keys of tiles are split."""
        return self._many_items if gathered else self._few_items

    def _launch(self, sequences: list[SequenceRows], shape: TileShape, *, gathered: bool) -> Launch:
        work = self._work(sequences, self._tile_rows(shape), gathered=gathered)
        capacity = Capacity.of(work)
        flat = packed(work, capacity, gathered=gathered, device=self._device).to(self._device, non_blocking=True)
        turned = bool(work.offsets_U.any())
        return self._described(shape, capacity, flat, gathered=gathered, turned=turned)

    def _reserved(
        self, num_rows: int, tiles: int, keys: int, shape: TileShape, room: Room, *, gathered: bool
    ) -> Launch:
        items = tiles + self._most_items(gathered=gathered)
        capacity = Capacity(
            items=items, rows=num_rows, runs=keys // RUN_KEYS + 64, split_rows=num_rows, parts=items, keys=keys
        )
        flat = torch.zeros(layout(capacity)["key_runs"].stop, dtype=torch.int32, device=self._device)
        return self._described(shape, capacity, flat, gathered=gathered, turned=room.turned)

    def _described(self, shape: TileShape, capacity: Capacity, flat: Tensor, *, gathered: bool, turned: bool) -> Launch:
        launch = Launch(
            shape=shape,
            tile_rows=self._tile_rows(shape),
            capacity=capacity,
            gathered=gathered,
            turned=turned,
            flat=flat,
            turn_U=(flat, flat),
        )
        return replace(launch, turn_U=self._rope.by_offsets(launch.part("offsets"))) if turned else launch

    def _run(self, launch: Launch, q_AHD: Tensor, out_AHD: Tensor, keys: Tensor, values: Tensor) -> None:
        heads, kv_heads, head_dim = self._heads
        num_parts = launch.capacity.parts * launch.tile_rows * heads
        parts = torch.empty(num_parts * (head_dim + 1), dtype=torch.float32, device=q_AHD.device)
        part_weights = parts[num_parts * head_dim :]
        sizes = {"HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "GROUP_PAD": self._group_pad}
        tiles = {
            "BLOCK_M": launch.shape.block_m,
            "BLOCK_N": launch.shape.block_n,
            "num_warps": launch.shape.num_warps,
            "num_stages": launch.shape.num_stages,
        }
        scale = head_dim**-0.5 * LOG2_E
        items, rows, key_ends = launch.part("items"), launch.part("rows"), launch.part("key_ends")
        grid = (launch.capacity.items, kv_heads)
        if launch.gathered:
            k, v = self._gather(launch, keys, values)
            triton_kernels.attend_gathered[grid](  # pyright: ignore[reportIndexIssue]
                q_AHD, out_AHD, parts, part_weights, k, v, items, rows, key_ends, k.shape[1], scale, **sizes, **tiles
            )
        else:
            triton_kernels.attend_rows[grid](  # pyright: ignore[reportIndexIssue]
                q_AHD,
                out_AHD,
                parts,
                part_weights,
                keys,
                values,
                items,
                rows,
                key_ends,
                launch.part("key_slots"),
                launch.part("run_starts"),
                *launch.turn_U,
                scale,
                **sizes,
                **tiles,
                TURN=launch.turned,
            )
        if launch.capacity.split_rows:
            triton_kernels.combine_splits[(launch.capacity.split_rows, kv_heads)](  # pyright: ignore[reportIndexIssue]
                out_AHD, parts, part_weights, launch.part("split_rows"), **sizes, TILE_ROWS=launch.tile_rows
            )

    def _gather(self, launch: Launch, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [kv heads, keys, D], K turned to where the reader sees them."""
        _, kv_heads, head_dim = self._heads
        length = -(-launch.capacity.keys // 64) * 64
        k, v = torch.empty(2, kv_heads, length, head_dim, dtype=keys.dtype, device=keys.device)
        programs = min(-(-launch.capacity.keys // GATHER_BLOCK), GATHER_PROGRAMS)
        triton_kernels.gather_keys[(programs, kv_heads)](  # pyright: ignore[reportIndexIssue]
            keys,
            values,
            k,
            v,
            launch.part("num_keys"),
            launch.part("key_slots"),
            launch.part("key_runs"),
            *launch.turn_U,
            length,
            KV_HEADS=kv_heads,
            HEAD_DIM=head_dim,
            BLOCK_N=GATHER_BLOCK,
            TURN=launch.turned,
            num_warps=4,
        )
        return k, v


def _rounded_up(num_keys: int) -> int:
    """0, or 8192 times a power of four."""
    room = 8192 if num_keys else 0
    while room < num_keys:
        room *= 4
    return room


def _is_dense(sequence: SequenceRows) -> bool:
    num_rows = len(sequence.rows)
    return (
        num_rows >= FEWEST_DENSE
        and int(sequence.rows[-1]) - int(sequence.rows[0]) + 1 == num_rows
        and not sequence.key_offsets.any()
        and np.array_equal(sequence.positions, np.arange(len(sequence.key_slots)))
        and np.array_equal(sequence.key_positions, sequence.positions)
    )
