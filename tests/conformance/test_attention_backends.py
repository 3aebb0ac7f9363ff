"""Triton's attention gives what `SdpaBackend` gives, for any rows over keys anywhere in the pool.

On CUDA the kernels run as compiled. Elsewhere Triton's interpreter runs them, where Triton is installed (3.9 works;
3.6's interpreter fails with NumPy 2.4) and the process was started with TRITON_INTERPRET=1.
"""

import os

import attention_cases
import pytest
import torch
from attention_cases import CASES, TOLERANCE, Case, Heads, mixed, screened

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytest.importorskip("triton", reason="Triton is not installed")
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device: set TRITON_INTERPRET=1 to run the kernels on CPU", allow_module_level=True)

from agentkv_engine.attention.triton_rows import TritonRows  # noqa: E402

pytestmark = [pytest.mark.gpu] if CUDA else []
HALF = [torch.float16, torch.bfloat16] if CUDA else [torch.float16]


def both(case: Case, heads: Heads, dtype: torch.dtype, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """What the oracle gives, and what Triton gives."""
    backend = TritonRows(
        heads.rope(DEVICE),
        num_heads=heads.heads,
        num_kv_heads=heads.kv_heads,
        head_dim=heads.dim,
        dtype=dtype,
        device=DEVICE,
        **options,
    )
    return attention_cases.both(case, heads, dtype, backend, DEVICE)


WAYS = {"dense": {}, "rows": {"dense": False}, "not gathered": {"dense": False, "most_gathered": 0}}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_equals_the_oracle(make, options: dict) -> None:
    expected, got = both(make(), Heads(), torch.float32, **options)
    assert (got - expected).abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_half_precision(make, dtype: torch.dtype) -> None:
    expected, got = both(make(), Heads(dim=128, heads=8, kv_heads=2), dtype)
    assert (got - expected).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "heads",
    [
        Heads(heads=2, kv_heads=2, dim=128),
        Heads(heads=8, kv_heads=2, dim=16),
        Heads(heads=14, kv_heads=2),
        Heads(heads=32, kv_heads=1, dim=32),
        Heads(rope_type="llama3"),
        Heads(rope_type="yarn", dim=32),
    ],
    ids=str,
)
def test_model_shapes(heads: Heads) -> None:
    for make in (mixed, screened):
        expected, got = both(make(), heads, torch.float32)
        assert (got - expected).abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("seed", range(4))
def test_random_sequences(seed: int) -> None:
    case = Case(100 + seed)
    for _ in range(int(case.random.integers(1, 6))):
        runs = [(int(case.random.integers(1, 200)), int(case.random.integers(-9000, 9000))) for _ in range(4)]
        length = sum(run_length for run_length, _ in runs)
        case.add(case.scatter(int(case.random.integers(1, min(50, length) + 1)), length), runs)
    expected, got = both(case.mix_rows(), Heads(heads=6, kv_heads=2, dim=32), torch.float32)
    assert (got - expected).abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("num_rows", [1, 40], ids=["decode", "many rows"])
def test_what_is_reserved_holds_many_runs(num_rows: int) -> None:
    """A chat among many agents reads dozens of runs: its steps fit the launches that graphs are captured with."""
    heads = Heads()
    backend = TritonRows(
        heads.rope(DEVICE), num_heads=4, num_kv_heads=1, head_dim=64, dtype=torch.float32, device=DEVICE
    )
    case = Case(7).add(range(2000 - num_rows, 2000), [(20, 100 * number - 3000) for number in range(100)])
    reserved = backend.reserve(num_rows, backend.room_for(case.sequences))
    assert reserved is not None
    assert backend.refill(reserved, case.sequences)
