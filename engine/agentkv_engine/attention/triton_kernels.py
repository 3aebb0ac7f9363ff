"""Triton kernels of row attention.

Few rows read keys by slot, untouched, and are turned once per run (`attend_rows`). For many rows the keys are gathered
first, turned to where the reader sees them (`gather_keys`); then there are no runs (`attend_gathered`).

One program takes a tile of rows of one sequence, the heads of one kv head, and a stretch of keys (an *item*, made by
`agentkv_engine.attention.row_items`). Softmax is online (arXiv 2205.14135) in base 2 and float32. Where the keys of a
tile are split among items, `combine_splits` adds up what they found (flash-decoding). Items and split rows may be
padded with zeros: those do nothing.

Nothing here depends on a length: only head counts, the head dimension and tile sizes are compiled in.
"""

# Triton comes with torch for CUDA only, and its language is not typed.
# pyright: reportMissingImports=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

NOTHING_SEEN = tl.constexpr(-1e30)


@triton.jit
def _queries(q_ptr, cos_ptr, sin_ptr, run, head_MD, valid_M1, dim_D, HEAD_DIM: tl.constexpr, TURN: tl.constexpr):
    """Queries [M, D] of a tile, turned back by the run's offset if TURN: R(-offset) q."""
    q_MD = tl.load(q_ptr + head_MD + dim_D[None, :], mask=valid_M1, other=0.0)
    if TURN:
        half: tl.constexpr = HEAD_DIM // 2
        partner_D = (dim_D + half) % HEAD_DIM
        other_MD = tl.load(q_ptr + head_MD + partner_D[None, :], mask=valid_M1, other=0.0).to(tl.float32)
        cos_D = tl.load(cos_ptr + run * half + dim_D % half)
        sin_D = tl.load(sin_ptr + run * half + dim_D % half)
        sin_D = tl.where(dim_D < half, sin_D, -sin_D)
        q_MD = (q_MD.to(tl.float32) * cos_D[None, :] + other_MD * sin_D[None, :]).to(q_ptr.dtype.element_ty)
    return q_MD


@triton.jit
def attend_rows(
    q_ptr,
    out_ptr,
    part_ptr,
    weight_ptr,
    k_ptr,
    v_ptr,
    items_ptr,
    rows_ptr,
    key_ends_ptr,
    slots_ptr,
    run_starts_ptr,
    cos_ptr,
    sin_ptr,
    scale_log2,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TURN: tl.constexpr,
):
    """One item and kv head; grid (items, KV_HEADS). M = rows of a tile x GROUP_PAD heads, N keys, D head dimension."""
    group: tl.constexpr = HEADS // KV_HEADS
    tile_rows: tl.constexpr = BLOCK_M // GROUP_PAD
    kv_head = tl.program_id(1)
    item_ptr = items_ptr + tl.program_id(0) * 8
    first_row, num_rows = tl.load(item_ptr), tl.load(item_ptr + 1)
    key_start, key_end = tl.load(item_ptr + 2), tl.load(item_ptr + 3)
    run_start, run_end, part = tl.load(item_ptr + 4), tl.load(item_ptr + 5), tl.load(item_ptr + 6)

    index_M = tl.arange(0, BLOCK_M)
    row_M, member_M = index_M // GROUP_PAD, index_M % GROUP_PAD
    valid_M = (row_M < num_rows) & (member_M < group)
    key_end_M = tl.load(key_ends_ptr + first_row + row_M, mask=valid_M, other=0)
    step_row_M = tl.load(rows_ptr + first_row + row_M, mask=valid_M, other=0).to(tl.int64)
    head_M = kv_head * group + member_M
    head_MD = ((step_row_M * HEADS + head_M) * HEAD_DIM)[:, None]
    dim_D = tl.arange(0, HEAD_DIM)
    index_N = tl.arange(0, BLOCK_N)

    acc_MD = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    best_M = tl.full([BLOCK_M], NOTHING_SEEN, dtype=tl.float32)
    total_M = tl.zeros([BLOCK_M], dtype=tl.float32)
    for run in range(run_start, run_end):
        q_MD = _queries(q_ptr, cos_ptr, sin_ptr, run, head_MD, valid_M[:, None], dim_D, HEAD_DIM, TURN)
        start = tl.maximum(tl.load(run_starts_ptr + run), key_start)
        end = tl.minimum(tl.load(run_starts_ptr + run + 1), key_end)
        for tile in range(start, end, BLOCK_N):
            key_N = tile + index_N
            here_N = key_N < end
            slot_N = tl.load(slots_ptr + key_N, mask=here_N, other=0).to(tl.int64)
            at_N = (slot_N * KV_HEADS + kv_head) * HEAD_DIM
            k_DN = tl.load(k_ptr + at_N[None, :] + dim_D[:, None], mask=here_N[None, :], other=0.0)
            score_MN = tl.dot(q_MD, k_DN, input_precision="ieee") * scale_log2
            score_MN = tl.where(key_N[None, :] < tl.minimum(key_end_M, end)[:, None], score_MN, float("-inf"))
            new_best_M = tl.maximum(best_M, tl.max(score_MN, 1))
            p_MN = tl.exp2(score_MN - new_best_M[:, None])
            shrink_M = tl.exp2(best_M - new_best_M)
            total_M = total_M * shrink_M + tl.sum(p_MN, 1)
            v_ND = tl.load(v_ptr + at_N[:, None] + dim_D[None, :], mask=here_N[:, None], other=0.0)
            acc_MD = tl.dot(p_MN.to(v_ND.dtype), v_ND, acc_MD * shrink_M[:, None], input_precision="ieee")
            best_M = new_best_M

    _store_tile(
        out_ptr,
        part_ptr,
        weight_ptr,
        acc_MD,
        best_M,
        total_M,
        part,
        row_M,
        head_M,
        head_MD,
        valid_M,
        HEADS,
        HEAD_DIM,
        tile_rows,
    )


@triton.jit
def _store_tile(
    out_ptr,
    part_ptr,
    weight_ptr,
    acc_MD,
    best_M,
    total_M,
    part,
    row_M,
    head_M,
    head_MD,
    valid_M,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """Write a tile's outputs, or its part of them and what it weighs."""
    dim_D = tl.arange(0, HEAD_DIM)
    seen_M = total_M > 0
    total_M = tl.where(seen_M, total_M, 1.0)
    acc_MD /= total_M[:, None]
    if part < 0:
        tl.store(out_ptr + head_MD + dim_D[None, :], acc_MD.to(out_ptr.dtype.element_ty), mask=valid_M[:, None])
    else:
        at_M = (part.to(tl.int64) * TILE_ROWS + row_M) * HEADS + head_M
        tl.store(part_ptr + at_M[:, None] * HEAD_DIM + dim_D[None, :], acc_MD, mask=valid_M[:, None])
        tl.store(weight_ptr + at_M, tl.where(seen_M, best_M + tl.log2(total_M), NOTHING_SEEN), mask=valid_M)


@triton.jit
def gather_keys(
    keys_ptr,
    values_ptr,
    k_ptr,
    v_ptr,
    num_keys_ptr,
    slots_ptr,
    key_runs_ptr,
    cos_ptr,
    sin_ptr,
    stride,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TURN: tl.constexpr,
):
    """Copy keys, turned by their run's offset if TURN, and values to [KV_HEADS, stride, HEAD_DIM]; grid (any,
    KV_HEADS): programs take tiles of keys in turn, so that spare room costs nothing. N keys, C = D / 2."""
    half: tl.constexpr = HEAD_DIM // 2
    kv_head = tl.program_id(1)
    num_keys = tl.load(num_keys_ptr)
    dim_1D, dim_C = tl.arange(0, HEAD_DIM)[None, :], tl.arange(0, half)
    for tile in range(tl.program_id(0), tl.cdiv(num_keys, BLOCK_N), tl.num_programs(0)):
        key_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        here_N = key_N < num_keys
        here_N1 = here_N[:, None]
        slot_N = tl.load(slots_ptr + key_N, mask=here_N, other=0).to(tl.int64)
        from_N1 = ((slot_N * KV_HEADS + kv_head) * HEAD_DIM)[:, None]
        to_N1 = ((kv_head.to(tl.int64) * stride + key_N) * HEAD_DIM)[:, None]
        v_ND = tl.load(values_ptr + from_N1 + dim_1D, mask=here_N1, other=0.0)
        tl.store(v_ptr + to_N1 + dim_1D, v_ND, mask=here_N1)
        if TURN:
            run_N = tl.load(key_runs_ptr + key_N, mask=here_N, other=0)
            at_NC = run_N[:, None] * half + dim_C[None, :]
            cos_NC = tl.load(cos_ptr + at_NC, mask=here_N1, other=1.0)
            sin_NC = tl.load(sin_ptr + at_NC, mask=here_N1, other=0.0)
            low_NC = tl.load(keys_ptr + from_N1 + dim_C[None, :], mask=here_N1, other=0.0).to(tl.float32)
            high_NC = tl.load(keys_ptr + from_N1 + half + dim_C[None, :], mask=here_N1, other=0.0).to(tl.float32)
            dtype = k_ptr.dtype.element_ty
            turned_NC = (low_NC * cos_NC - high_NC * sin_NC).to(dtype)
            tl.store(k_ptr + to_N1 + dim_C[None, :], turned_NC, mask=here_N1)
            turned_NC = (high_NC * cos_NC + low_NC * sin_NC).to(dtype)
            tl.store(k_ptr + to_N1 + half + dim_C[None, :], turned_NC, mask=here_N1)
        else:
            k_ND = tl.load(keys_ptr + from_N1 + dim_1D, mask=here_N1, other=0.0)
            tl.store(k_ptr + to_N1 + dim_1D, k_ND, mask=here_N1)


@triton.jit
def attend_gathered(
    q_ptr,
    out_ptr,
    part_ptr,
    weight_ptr,
    k_ptr,
    v_ptr,
    items_ptr,
    rows_ptr,
    key_ends_ptr,
    stride,
    scale_log2,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One item and kv head over gathered keys [KV_HEADS, stride, HEAD_DIM]; grid (items, KV_HEADS). Keys that all rows
    see come first and need no mask."""
    group: tl.constexpr = HEADS // KV_HEADS
    tile_rows: tl.constexpr = BLOCK_M // GROUP_PAD
    kv_head = tl.program_id(1)
    item_ptr = items_ptr + tl.program_id(0) * 8
    first_row, num_rows = tl.load(item_ptr), tl.load(item_ptr + 1)
    key_start, key_end = tl.load(item_ptr + 2), tl.load(item_ptr + 3)
    part, seen_by_all = tl.load(item_ptr + 6), tl.load(item_ptr + 7)
    unmasked_end = key_start + (seen_by_all - key_start) // BLOCK_N * BLOCK_N

    index_M = tl.arange(0, BLOCK_M)
    row_M, member_M = index_M // GROUP_PAD, index_M % GROUP_PAD
    valid_M = (row_M < num_rows) & (member_M < group)
    key_end_M = tl.minimum(tl.load(key_ends_ptr + first_row + row_M, mask=valid_M, other=0), key_end)
    step_row_M = tl.load(rows_ptr + first_row + row_M, mask=valid_M, other=0).to(tl.int64)
    head_M = kv_head * group + member_M
    head_MD = ((step_row_M * HEADS + head_M) * HEAD_DIM)[:, None]
    dim_D = tl.arange(0, HEAD_DIM)
    index_N = tl.arange(0, BLOCK_N)
    q_MD = tl.load(q_ptr + head_MD + dim_D[None, :], mask=valid_M[:, None], other=0.0)
    k_ptr += kv_head.to(tl.int64) * stride * HEAD_DIM
    v_ptr += kv_head.to(tl.int64) * stride * HEAD_DIM

    acc_MD = tl.zeros([BLOCK_M, HEAD_DIM], dtype=tl.float32)
    best_M = tl.full([BLOCK_M], NOTHING_SEEN, dtype=tl.float32)
    total_M = tl.zeros([BLOCK_M], dtype=tl.float32)
    for start in range(key_start, unmasked_end, BLOCK_N):
        at_N = (start + index_N) * HEAD_DIM
        k_DN = tl.load(k_ptr + at_N[None, :] + dim_D[:, None])
        score_MN = tl.dot(q_MD, k_DN, input_precision="ieee")
        new_best_M = tl.maximum(best_M, tl.max(score_MN, 1) * scale_log2)
        p_MN = tl.exp2(score_MN * scale_log2 - new_best_M[:, None])
        shrink_M = tl.exp2(best_M - new_best_M)
        total_M = total_M * shrink_M + tl.sum(p_MN, 1)
        v_ND = tl.load(v_ptr + at_N[:, None] + dim_D[None, :])
        acc_MD = tl.dot(p_MN.to(v_ND.dtype), v_ND, acc_MD * shrink_M[:, None], input_precision="ieee")
        best_M = new_best_M
    for start in range(unmasked_end, key_end, BLOCK_N):
        key_N = start + index_N
        at_N = key_N * HEAD_DIM
        k_DN = tl.load(k_ptr + at_N[None, :] + dim_D[:, None], mask=(key_N < key_end)[None, :], other=0.0)
        score_MN = tl.dot(q_MD, k_DN, input_precision="ieee") * scale_log2
        score_MN = tl.where(key_N[None, :] < key_end_M[:, None], score_MN, float("-inf"))
        new_best_M = tl.maximum(best_M, tl.max(score_MN, 1))
        p_MN = tl.exp2(score_MN - new_best_M[:, None])
        shrink_M = tl.exp2(best_M - new_best_M)
        total_M = total_M * shrink_M + tl.sum(p_MN, 1)
        v_ND = tl.load(v_ptr + at_N[:, None] + dim_D[None, :], mask=(key_N < key_end)[:, None], other=0.0)
        acc_MD = tl.dot(p_MN.to(v_ND.dtype), v_ND, acc_MD * shrink_M[:, None], input_precision="ieee")
        best_M = new_best_M
    _store_tile(
        out_ptr,
        part_ptr,
        weight_ptr,
        acc_MD,
        best_M,
        total_M,
        part,
        row_M,
        head_M,
        head_MD,
        valid_M,
        HEADS,
        HEAD_DIM,
        tile_rows,
    )


@triton.jit
def combine_splits(
    out_ptr,
    part_ptr,
    weight_ptr,
    split_rows_ptr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """One row whose keys were split, and one kv head; grid (split rows, KV_HEADS). G = GROUP_PAD heads."""
    group: tl.constexpr = HEADS // KV_HEADS
    row_ptr = split_rows_ptr + tl.program_id(0) * 4
    step_row, row = tl.load(row_ptr).to(tl.int64), tl.load(row_ptr + 1)
    first, count = tl.load(row_ptr + 2).to(tl.int64), tl.load(row_ptr + 3)
    member_G = tl.arange(0, GROUP_PAD)
    valid_G = member_G < group
    head_G = tl.program_id(1) * group + member_G
    dim_D = tl.arange(0, HEAD_DIM)

    acc_GD = tl.zeros([GROUP_PAD, HEAD_DIM], dtype=tl.float32)
    best_G = tl.full([GROUP_PAD], NOTHING_SEEN, dtype=tl.float32)
    total_G = tl.zeros([GROUP_PAD], dtype=tl.float32)
    for part in range(count):
        at_G = ((first + part) * TILE_ROWS + row) * HEADS + head_G
        weight_G = tl.load(weight_ptr + at_G, mask=valid_G, other=0.0)
        part_GD = tl.load(part_ptr + at_G[:, None] * HEAD_DIM + dim_D[None, :], mask=valid_G[:, None], other=0.0)
        new_best_G = tl.maximum(best_G, weight_G)
        share_G, shrink_G = tl.exp2(weight_G - new_best_G), tl.exp2(best_G - new_best_G)
        acc_GD = acc_GD * shrink_G[:, None] + part_GD * share_G[:, None]
        total_G = total_G * shrink_G + share_G
        best_G = new_best_G
    if count > 0:
        out_GD = acc_GD / total_G[:, None]
        at_GD = ((step_row * HEADS + head_G) * HEAD_DIM)[:, None] + dim_D[None, :]
        tl.store(out_ptr + at_GD, out_GD.to(out_ptr.dtype.element_ty), mask=valid_G[:, None])
