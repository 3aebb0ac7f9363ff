"""The fused kernels give what `TorchOperations` gives.

On CUDA they run as compiled; elsewhere Triton's interpreter runs them, where Triton is installed and the process was
started with TRITON_INTERPRET=1.
"""

import os

import pytest
import torch

from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.row_traces import SKETCH, Traces
from agentkv_engine.model.model_config import RopeConfig
from agentkv_engine.model.operations import RowPlaces, TorchOperations, TurnedRows
from agentkv_engine.model.rope import RotaryEmbedding, rotate

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytest.importorskip("triton", reason="Triton is not installed: TorchOperations alone runs here")
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device: set TRITON_INTERPRET=1 to run the kernels on CPU", allow_module_level=True)

from agentkv_engine.model.triton_operations import TritonOperations  # noqa: E402

pytestmark = [pytest.mark.gpu] if CUDA else []
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE) if CUDA else [torch.float32, torch.float16]
NUM_SLOTS = 64


def normal(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    error = (got.float() - expected.float()).abs().max() if got.numel() else 0
    assert error <= TOLERANCE[got.dtype] * max(1.0, float(expected.float().abs().max()) if got.numel() else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [64, 96, 2560])
@pytest.mark.parametrize("adds", [True, False], ids=["add", "first"])
def test_add_norm(dtype: torch.dtype, size: int, adds: bool) -> None:
    x, delta = normal(5, size, seed=1, dtype=dtype), normal(5, size, seed=2, dtype=dtype)
    weight = normal(size, seed=3, dtype=dtype)
    before = x.clone()
    got = TritonOperations().add_norm(x, delta if adds else None, weight, 1e-5)
    for ours, theirs in zip(got, TorchOperations().add_norm(x, delta if adds else None, weight, 1e-5), strict=True):
        assert_near(ours, theirs)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [48, 1024, 1100])
def test_swiglu(dtype: torch.dtype, size: int) -> None:
    gate_up = normal(3, 2 * size, seed=4, dtype=dtype) * 4
    assert_near(TritonOperations().swiglu(gate_up), TorchOperations().swiglu(gate_up))


def five_places(rope: RotaryEmbedding, *, home: bool) -> RowPlaces:
    """Rows here and there, of runs with offsets or fresh."""
    offsets = torch.tensor([0, 300, -7, 0, 100_000], device=DEVICE)
    return RowPlaces(
        slots_N=torch.tensor([9, 63, 0, 17, 30], device=DEVICE),
        rotation_N=rope.at_positions(torch.tensor([0, 700, 3, 41, 5000], device=DEVICE)),
        home_N=rope.by_offsets(offsets) if home else None,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 1, 64), (14, 2, 16), (2, 2, 128)])
@pytest.mark.parametrize("home", [True, False], ids=["runs", "fresh"])
def test_rotate_and_store(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, home: bool) -> None:
    rope = RotaryEmbedding(RopeConfig(rope_type="default", theta=1e4, parameters={}), head_dim).to(DEVICE)
    places = five_places(rope, home=home)
    qkv = normal(5, (heads + 2 * kv_heads) * head_dim, seed=5, dtype=dtype)
    pools, queries = [], []
    for operations in (TritonOperations(), TorchOperations()):
        pool = KVPool(
            num_layers=2,
            num_blocks=NUM_SLOTS // 16,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=DEVICE,
        )
        for tensor in (*pool.stored(0), *pool.stored(1)):
            tensor.fill_(7)
        queries.append(operations.rotate_and_store(qkv, places, 3, pool, 1))
        pools.append(pool)
    assert queries[0].shape == (3, heads, head_dim)
    assert_near(*queries)
    for layer in (0, 1):
        for ours, theirs in zip(*(pool.stored(layer) for pool in pools), strict=True):
            assert_near(ours, theirs)


def test_no_rows_launch_nothing() -> None:
    operations = TritonOperations()
    none = torch.empty(0, 64, device=DEVICE)
    assert [len(x) for x in operations.add_norm(none, none, torch.ones(64, device=DEVICE), 1e-5)] == [0, 0]
    assert operations.swiglu(none).shape == (0, 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 64), (14, 16), (2, 128)])
@pytest.mark.parametrize("home", [True, False], ids=["runs", "fresh"])
def test_queries_are_kept_and_found_again(dtype: torch.dtype, heads: int, head_dim: int, home: bool) -> None:
    rope = RotaryEmbedding(RopeConfig(rope_type="default", theta=1e4, parameters={}), head_dim).to(DEVICE)
    places = five_places(rope, home=home)
    q = normal(5, heads, head_dim, seed=6, dtype=dtype)
    rows = TurnedRows(
        slots_R=torch.tensor([63, 0, 9], device=DEVICE),
        runs_R=torch.tensor([0, 0, 1], device=DEVICE),
        turns_U=rope.by_offsets(torch.tensor([12, -40_000], device=DEVICE)),
    )
    found, values = [], []
    for operations in (TritonOperations(), TorchOperations()):
        kept = Traces(
            torch.zeros(NUM_SLOTS, heads, head_dim, dtype=torch.int8, device=DEVICE),
            torch.zeros(NUM_SLOTS, heads, dtype=torch.float16, device=DEVICE),
            torch.zeros(NUM_SLOTS, device=DEVICE),
            torch.zeros(NUM_SLOTS, SKETCH, dtype=torch.bfloat16, device=DEVICE),
        )
        operations.keep_queries(q, places, kept)
        found.append(operations.kept_queries(kept, rows, dtype))
        values.append(kept.values_SHD.int())
        assert not values[-1][[1, 10, 31]].any()
    assert (values[0] - values[1]).abs().max() <= 1  # a rotation rounds a hair's breadth apart
    largest = float(q.float().abs().max())
    assert (found[0].float() - found[1].float()).abs().max() < 2 * largest / 127
    if not home:  # what was kept is what is found, turned: within half a step of 8 bits
        turned = rotate(q[[1, 2, 0]], tuple(part[rows.runs_R] for part in rows.turns_U))
        assert (found[0].float() - turned.float()).abs().max() < 1.5 * largest / 127
