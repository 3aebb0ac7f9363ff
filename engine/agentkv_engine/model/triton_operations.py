"""What a layer does between its matrix products as Triton kernels: each reads its inputs once, and waits for nothing.

Sums, norms and rotations are float32; what is written has the dtype of what was read. Nothing that depends on a step is
compiled in.
"""

# Triton comes with torch for CUDA only, and its language is not typed.
# pyright: reportMissingImports=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.row_traces import LARGEST, Traces
from agentkv_engine.model.operations import RowPlaces, TurnedRows

SWIGLU_BLOCK = 1024


class TritonOperations:
    """See `Operations`; Triton's interpreter runs it on CPU, slowly."""

    def add_norm(self, x_NE: Tensor, delta_NE: Tensor | None, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Operations.add_norm`."""
        normed_NE = torch.empty_like(x_NE)
        sum_NE = x_NE if delta_NE is None else torch.empty_like(x_NE)
        size = x_NE.shape[1]
        if len(x_NE):
            add_norm_kernel[(len(x_NE),)](
                x_NE,
                x_NE if delta_NE is None else delta_NE,
                weight_E,
                sum_NE,
                normed_NE,
                eps,
                SIZE=size,
                BLOCK=triton.next_power_of_2(size),
                ADD=delta_NE is not None,
                num_warps=8 if size > 2048 else 4,
            )
        return sum_NE, normed_NE

    def swiglu(self, gate_up_N2F: Tensor) -> Tensor:
        """See `Operations.swiglu`."""
        rows, size = len(gate_up_N2F), gate_up_N2F.shape[1] // 2
        out_NF = gate_up_N2F.new_empty(rows, size)
        if rows:
            swiglu_kernel[(rows, triton.cdiv(size, SWIGLU_BLOCK))](
                gate_up_N2F, out_NF, SIZE=size, BLOCK=SWIGLU_BLOCK, num_warps=4
            )
        return out_NF

    def rotate_and_store(
        self, qkv_WX: Tensor, places_W: RowPlaces, num_attending: int, pool: KVPool, layer: int
    ) -> Tensor:
        """See `Operations.rotate_and_store`."""
        num_kv_heads, head_dim = pool.head_shape
        num_heads = qkv_WX.shape[1] // head_dim - 2 * num_kv_heads
        q_AHD = qkv_WX.new_empty(num_attending, num_heads, head_dim)
        home_N = places_W.home_N
        if len(qkv_WX):
            rotate_and_store_kernel[(len(qkv_WX), num_kv_heads)](
                qkv_WX,
                q_AHD,
                *pool.stored(layer),
                places_W.slots_N,
                *places_W.rotation_N,
                *(places_W.rotation_N if home_N is None else home_N),
                num_attending,
                HEADS=num_heads,
                KV_HEADS=num_kv_heads,
                HEAD_DIM=head_dim,
                GROUP_PAD=triton.next_power_of_2(num_heads // num_kv_heads),
                TURN_HOME=home_N is not None,
                num_warps=1,
            )
        return q_AHD

    def keep_queries(self, q_AHD: Tensor, places_A: RowPlaces, kept: Traces) -> None:
        """See `Operations.keep_queries`."""
        q_AHD = q_AHD.contiguous()
        rows, heads, head_dim = q_AHD.shape
        home_N = places_A.home_N
        if rows:
            keep_queries_kernel[(rows,)](
                q_AHD,
                kept.values_SHD,
                kept.scales_SH,
                places_A.slots_N,
                *(places_A.rotation_N if home_N is None else home_N),
                HEADS=heads,
                HEADS_PAD=triton.next_power_of_2(heads),
                HEAD_DIM=head_dim,
                LARGEST=LARGEST,
                TURN_HOME=home_N is not None,
                num_warps=4,
            )

    def kept_queries(self, kept: Traces, rows: TurnedRows, dtype: torch.dtype) -> Tensor:
        """See `Operations.kept_queries`."""
        heads, head_dim = kept.values_SHD.shape[1:]
        q_RHD = torch.empty(len(rows.slots_R), heads, head_dim, dtype=dtype, device=rows.slots_R.device)
        if len(q_RHD):
            kept_queries_kernel[(len(q_RHD),)](
                kept.values_SHD,
                kept.scales_SH,
                q_RHD,
                rows.slots_R,
                rows.runs_R,
                *rows.turns_U,
                HEADS=heads,
                HEADS_PAD=triton.next_power_of_2(heads),
                HEAD_DIM=head_dim,
                num_warps=4,
            )
        return q_RHD


@triton.jit
def add_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, sum_ptr, normed_ptr, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    """One row; grid (rows,). The sum is rounded as it is stored before it is normalised, as torch's is."""
    at_E = tl.arange(0, BLOCK)
    inside_E = at_E < SIZE
    row_E = tl.program_id(0).to(tl.int64) * SIZE + at_E
    x_E = tl.load(x_ptr + row_E, mask=inside_E, other=0.0)
    weight_E = tl.load(weight_ptr + at_E, mask=inside_E, other=0.0)
    dtype = x_E.dtype
    x_E = x_E.to(tl.float32)
    if ADD:
        x_E += tl.load(delta_ptr + row_E, mask=inside_E, other=0.0).to(tl.float32)
        rounded_E = x_E.to(dtype)
        tl.store(sum_ptr + row_E, rounded_E, mask=inside_E)
        x_E = rounded_E.to(tl.float32)
    normed_E = (x_E * tl.rsqrt(tl.sum(x_E * x_E, 0) / SIZE + eps)).to(dtype)
    tl.store(normed_ptr + row_E, (normed_E.to(tl.float32) * weight_E.to(tl.float32)).to(dtype), mask=inside_E)


@triton.jit
def swiglu_kernel(gate_up_ptr, out_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """A stretch of one row; grid (rows, stretches)."""
    row = tl.program_id(0).to(tl.int64)
    at_F = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_F = at_F < SIZE
    gate_F = tl.load(gate_up_ptr + row * 2 * SIZE + at_F, mask=inside_F, other=0.0)
    up_F = tl.load(gate_up_ptr + (row * 2 + 1) * SIZE + at_F, mask=inside_F, other=0.0)
    exact_F = gate_F.to(tl.float32)
    silu_F = (exact_F / (1.0 + tl.exp(-exact_F))).to(gate_F.dtype)
    tl.store(out_ptr + row * SIZE + at_F, (silu_F.to(tl.float32) * up_F.to(tl.float32)).to(gate_F.dtype), mask=inside_F)


@triton.jit(do_not_specialize=["num_attending"])
def rotate_and_store_kernel(
    qkv_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    cos_ptr,
    sin_ptr,
    home_cos_ptr,
    home_sin_ptr,
    num_attending,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    TURN_HOME: tl.constexpr,
):
    """One row and kv head with its group of query heads; grid (rows, KV_HEADS). G = GROUP_PAD heads, C = D / 2."""
    half: tl.constexpr = HEAD_DIM // 2
    group: tl.constexpr = HEADS // KV_HEADS
    row, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    qkv_ptr += row * (HEADS + 2 * KV_HEADS) * HEAD_DIM
    at_C = tl.arange(0, half)
    cos_C, sin_C = tl.load(cos_ptr + row * half + at_C), tl.load(sin_ptr + row * half + at_C)

    if row < num_attending:
        member_G = tl.arange(0, GROUP_PAD)
        valid_G1 = (member_G < group)[:, None]
        at_GC = ((kv_head * group + member_G) * HEAD_DIM)[:, None] + at_C[None, :]
        low_GC = tl.load(qkv_ptr + at_GC, mask=valid_G1, other=0.0)
        high_GC = tl.load(qkv_ptr + at_GC + half, mask=valid_G1, other=0.0)
        dtype = low_GC.dtype
        low_GC, high_GC = low_GC.to(tl.float32), high_GC.to(tl.float32)
        turned_low_GC = low_GC * cos_C[None, :] - high_GC * sin_C[None, :]
        turned_high_GC = high_GC * cos_C[None, :] + low_GC * sin_C[None, :]
        q_ptr += row * HEADS * HEAD_DIM
        tl.store(q_ptr + at_GC, turned_low_GC.to(dtype), mask=valid_G1)
        tl.store(q_ptr + at_GC + half, turned_high_GC.to(dtype), mask=valid_G1)

    key_ptr = qkv_ptr + (HEADS + kv_head) * HEAD_DIM + at_C
    low_C, high_C = tl.load(key_ptr).to(tl.float32), tl.load(key_ptr + half).to(tl.float32)
    key_low_C, key_high_C = low_C * cos_C - high_C * sin_C, high_C * cos_C + low_C * sin_C
    if TURN_HOME:
        home_cos_C = tl.load(home_cos_ptr + row * half + at_C)
        home_sin_C = tl.load(home_sin_ptr + row * half + at_C)
        low_C, high_C = key_low_C, key_high_C
        key_low_C, key_high_C = low_C * home_cos_C + high_C * home_sin_C, high_C * home_cos_C - low_C * home_sin_C
    at_slot = (tl.load(slots_ptr + row) * KV_HEADS + kv_head) * HEAD_DIM
    tl.store(keys_ptr + at_slot + at_C, key_low_C.to(keys_ptr.dtype.element_ty))
    tl.store(keys_ptr + at_slot + at_C + half, key_high_C.to(keys_ptr.dtype.element_ty))
    at_D = tl.arange(0, HEAD_DIM)
    value_D = tl.load(qkv_ptr + (HEADS + KV_HEADS + kv_head) * HEAD_DIM + at_D)
    tl.store(values_ptr + at_slot + at_D, value_D)


@triton.jit
def _round_even(x):
    """To the nearest whole number, halves to the even one, as torch does; |x| < 2^22."""
    magic: tl.constexpr = 12582912.0  # 1.5 * 2^23: float32 has no bits behind the point there
    return (x + magic) - magic


@triton.jit
def keep_queries_kernel(
    q_ptr,
    values_ptr,
    scales_ptr,
    slots_ptr,
    cos_ptr,
    sin_ptr,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LARGEST: tl.constexpr,
    TURN_HOME: tl.constexpr,
):
    """One row; grid (rows,). H = HEADS_PAD heads, C = D / 2."""
    half: tl.constexpr = HEAD_DIM // 2
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    head_H, at_C = tl.arange(0, HEADS_PAD), tl.arange(0, half)
    inside_H = head_H < HEADS
    at_HC = head_H[:, None] * HEAD_DIM + at_C[None, :]
    inside_H1 = inside_H[:, None]
    low_HC = tl.load(q_ptr + row * HEADS * HEAD_DIM + at_HC, mask=inside_H1, other=0.0)
    high_HC = tl.load(q_ptr + row * HEADS * HEAD_DIM + at_HC + half, mask=inside_H1, other=0.0)
    dtype = low_HC.dtype
    low_HC, high_HC = low_HC.to(tl.float32), high_HC.to(tl.float32)
    if TURN_HOME:
        cos_1C, sin_1C = (
            tl.load(cos_ptr + row * half + at_C)[None, :],
            tl.load(sin_ptr + row * half + at_C)[None, :],
        )
        turned_HC = low_HC * cos_1C + high_HC * sin_1C
        high_HC = (high_HC * cos_1C - low_HC * sin_1C).to(dtype).to(tl.float32)
        low_HC = turned_HC.to(dtype).to(tl.float32)
    most_H = tl.maximum(tl.max(tl.abs(low_HC), 1), tl.max(tl.abs(high_HC), 1))
    scale_H = tl.maximum(most_H, 1e-6) / LARGEST
    to_HC = slot * HEADS * HEAD_DIM + at_HC
    tl.store(values_ptr + to_HC, _round_even(low_HC / scale_H[:, None]).to(tl.int8), mask=inside_H1)
    tl.store(values_ptr + to_HC + half, _round_even(high_HC / scale_H[:, None]).to(tl.int8), mask=inside_H1)
    tl.store(scales_ptr + slot * HEADS + head_H, scale_H.to(tl.float16), mask=inside_H)


@triton.jit
def kept_queries_kernel(
    values_ptr,
    scales_ptr,
    q_ptr,
    slots_ptr,
    runs_ptr,
    cos_ptr,
    sin_ptr,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """One row; grid (rows,). H = HEADS_PAD heads, C = D / 2."""
    half: tl.constexpr = HEAD_DIM // 2
    row = tl.program_id(0).to(tl.int64)
    slot, run = tl.load(slots_ptr + row).to(tl.int64), tl.load(runs_ptr + row)
    head_H, at_C = tl.arange(0, HEADS_PAD), tl.arange(0, half)
    inside_H1 = (head_H < HEADS)[:, None]
    at_HC = head_H[:, None] * HEAD_DIM + at_C[None, :]
    scale_H1 = tl.load(scales_ptr + slot * HEADS + head_H, mask=head_H < HEADS, other=0.0).to(tl.float32)[:, None]
    from_HC = slot * HEADS * HEAD_DIM + at_HC
    low_HC = tl.load(values_ptr + from_HC, mask=inside_H1, other=0).to(tl.float32) * scale_H1
    high_HC = tl.load(values_ptr + from_HC + half, mask=inside_H1, other=0).to(tl.float32) * scale_H1
    cos_1C = tl.load(cos_ptr + run * half + at_C)[None, :]
    sin_1C = tl.load(sin_ptr + run * half + at_C)[None, :]
    to_HC = row * HEADS * HEAD_DIM + at_HC
    dtype = q_ptr.dtype.element_ty
    tl.store(q_ptr + to_HC, (low_HC * cos_1C - high_HC * sin_1C).to(dtype), mask=inside_H1)
    tl.store(q_ptr + to_HC + half, (high_HC * cos_1C + low_HC * sin_1C).to(dtype), mask=inside_H1)
