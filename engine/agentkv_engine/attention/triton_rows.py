"""Row attention by Triton kernels: all sequences of a step in one launch, nothing compiled in but the model's shape.

A key that a reader sees at home + offset is read as it lies; the query is turned instead, once a run:
<R(p) q, R(home + offset) k> = <R(-offset) R(p) q, R(home) k>.

Sequences of few rows (decodes, small probes) and of many get tiles of their own, so a step has at most two launches.
Where a sequence's rows are all of its positions and its keys have no offset (a fresh prefill in one chunk), torch's own
attention is faster and is used.

Shapes: A attending rows, R rows of a sequence, S keys, U runs, H heads, K kv heads, D head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.attention import triton_kernels
from agentkv_engine.attention.row_items import RowItems, row_items
from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.attention.sdpa import torch_attention
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.rope import RotaryEmbedding, Rotation

FEWEST_DENSE = 128
"""Rows of a fresh prefill from which torch's attention is used."""

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, kw_only=True)
class TileShape:
    """Rows times heads of a tile, keys read at once, and how a program of them runs."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch's metadata on the device (int32; see `RowItems`) and its sizes."""

    shape: TileShape
    tile_rows: int
    items: Tensor
    rows: Tensor
    positions: Tensor
    key_slots: Tensor
    key_positions: Tensor
    run_starts: Tensor
    split_rows: Tensor
    turn_U: Rotation
    turned: bool
    num_items: int
    num_parts: int
    num_split_rows: int


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


class TritonRows:
    """Attention back end for devices that Triton compiles for (its interpreter runs it on CPU, slowly).

    Args:
        rope: whose turns the queries take.
        num_heads, num_kv_heads, head_dim: of the model; the head dimension is a power of two of at least 16.
        dtype: of queries and keys.
        device: where they lie.
        dense: whether torch's attention takes fresh prefills.
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
    ) -> None:
        self._rope = rope
        self._heads = (num_heads, num_kv_heads, head_dim)
        self._group_pad = 1 << (num_heads // num_kv_heads - 1).bit_length()
        self._exact = dtype == torch.float32
        self._device = device
        self._dense = dense
        on_gpu = torch.device(device).type == "cuda"
        self._num_processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 2

    def prepare(self, sequences: Sequence[SequenceRows]) -> PreparedRows:
        """See `AttentionBackend.prepare`. Two copies to the device a launch."""
        dense = [sequence for sequence in sequences if self._dense and _is_dense(sequence)]
        others = [sequence for sequence in sequences if not (self._dense and _is_dense(sequence))]
        few_rows = self._tile_rows(self._shape(1, turned=False))
        few = [sequence for sequence in others if len(sequence.rows) <= few_rows]
        many = [sequence for sequence in others if len(sequence.rows) > few_rows]
        return PreparedRows(
            launches=tuple(self._launch(group) for group in (few, many) if group),
            dense=tuple(
                Dense(rows=slice(int(s.rows[0]), int(s.rows[-1]) + 1), key_slots=self._upload(s.key_slots))
                for s in dense
            ),
        )

    def attend(self, q_AHD: Tensor, layer: int, pool: KVPool, prepared: PreparedRows) -> Tensor:
        """See `AttentionBackend.attend`. Waits for nothing."""
        q_AHD = q_AHD.contiguous()
        out_AHD = torch.empty_like(q_AHD)
        for sequence in prepared.dense:
            k_SKD, v_SKD = pool.read(layer, sequence.key_slots)
            out_AHD[sequence.rows] = torch_attention(q_AHD[sequence.rows], k_SKD, v_SKD, None)
        for launch in prepared.launches:
            self._run(launch, q_AHD, out_AHD, *pool.stored(layer))
        return out_AHD

    def _run(self, launch: Launch, q_AHD: Tensor, out_AHD: Tensor, keys: Tensor, values: Tensor) -> None:
        heads, kv_heads, head_dim = self._heads
        num_parts = launch.num_parts * launch.tile_rows * heads
        parts = torch.empty(num_parts * (head_dim + 1), dtype=torch.float32, device=q_AHD.device)
        part_weights = parts[num_parts * head_dim :]
        sizes = {"HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "GROUP_PAD": self._group_pad}
        triton_kernels.attend_rows[(launch.num_items, kv_heads)](  # pyright: ignore[reportIndexIssue]
            q_AHD,
            out_AHD,
            parts,
            part_weights,
            keys,
            values,
            launch.items,
            launch.rows,
            launch.positions,
            launch.key_slots,
            launch.key_positions,
            launch.run_starts,
            *launch.turn_U,
            head_dim**-0.5 * LOG2_E,
            **sizes,
            BLOCK_M=launch.shape.block_m,
            BLOCK_N=launch.shape.block_n,
            TURN=launch.turned,
            num_warps=launch.shape.num_warps,
            num_stages=launch.shape.num_stages,
        )
        if launch.num_split_rows:
            triton_kernels.combine_splits[(launch.num_split_rows, kv_heads)](  # pyright: ignore[reportIndexIssue]
                out_AHD, parts, part_weights, launch.split_rows, **sizes, TILE_ROWS=launch.tile_rows
            )

    def _launch(self, sequences: list[SequenceRows]) -> Launch:
        turned = any(bool(sequence.key_offsets.any()) for sequence in sequences)
        shape = self._shape(max(len(sequence.rows) for sequence in sequences), turned=turned)
        tile_rows = self._tile_rows(shape)
        num_items = -(-6 * self._num_processors // self._heads[1])
        work = row_items(sequences, tile_rows=tile_rows, num_items=num_items)
        parts = self._upload_together(work)
        return Launch(
            shape=shape,
            tile_rows=tile_rows,
            items=parts[0],
            rows=parts[1],
            positions=parts[2],
            key_slots=parts[3],
            key_positions=parts[4],
            run_starts=parts[5],
            split_rows=parts[6],
            turn_U=self._rope.by_offsets(parts[7]),
            turned=turned,
            num_items=len(work.items_I8),
            num_parts=work.num_parts,
            num_split_rows=len(work.split_rows_X4),
        )

    def _shape(self, num_rows: int, *, turned: bool) -> TileShape:
        """Tiles for sequences of at most `num_rows` rows: the fastest of those measured on an H100 (evals/LOG.md)."""
        most = num_rows * self._group_pad
        if most <= max(16, self._group_pad):
            block_m, block_n, num_warps, num_stages = max(16, self._group_pad), 64, 2, 3
        elif num_rows < 1024:
            block_m, block_n, num_warps, num_stages = max(64, self._group_pad), 64, 4, 3
        else:
            block_m, block_n, num_warps, num_stages = max(128, self._group_pad), 64, 4 if turned else 8, 3
        if self._exact:  # four bytes a number: shared memory holds half as many
            block_m, block_n, num_warps, num_stages = min(block_m, max(32, self._group_pad)), 32, 4, 2
        if self._heads[2] > 128:
            block_n //= 2
        return TileShape(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)

    def _tile_rows(self, shape: TileShape) -> int:
        return shape.block_m // self._group_pad

    def _upload_together(self, work: RowItems) -> list[Tensor]:
        """The arrays as one copy; each starts at a multiple of 16 bytes: one kernel serves all."""
        arrays = (
            work.items_I8,
            work.rows_R,
            work.positions_R,
            work.key_slots_S,
            work.key_positions_S,
            work.run_starts_U1,
            work.split_rows_X4,
            work.offsets_U,
        )
        sizes = [array.size for array in arrays]
        starts = np.concatenate([[0], np.cumsum([-(-size // 4) * 4 for size in sizes])]).tolist()
        flat = np.zeros(starts[-1], dtype=np.int32)
        for start, array in zip(starts, arrays, strict=False):
            flat[start : start + array.size] = array.reshape(-1)
        together = self._upload(flat)
        return [together[start : start + size] for start, size in zip(starts, sizes, strict=False)]

    def _upload(self, array: np.ndarray) -> Tensor:
        """A copy on the device that the host need not wait for."""
        tensor = torch.from_numpy(array)
        if torch.device(self._device).type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _is_dense(sequence: SequenceRows) -> bool:
    num_rows = len(sequence.rows)
    return (
        num_rows >= FEWEST_DENSE
        and int(sequence.rows[-1]) - int(sequence.rows[0]) + 1 == num_rows
        and not sequence.key_offsets.any()
        and np.array_equal(sequence.positions, np.arange(len(sequence.key_slots)))
        and np.array_equal(sequence.key_positions, sequence.positions)
    )
