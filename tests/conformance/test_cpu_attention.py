"""CPU's attention gives what `SdpaBackend` gives, for any rows over keys anywhere in the pool."""

import numpy as np
import pytest
import torch
from attention_cases import CASES, TOLERANCE, Case, Heads, both, decodes_in_place, in_place, mixed

from agentkv_engine.attention.cpu_rows import CpuRows

SHAPES = [Heads(), Heads(heads=2, kv_heads=2, dim=128), Heads(heads=14, kv_heads=2), Heads(rope_type="yarn", dim=32)]


def error(case: Case, heads: Heads, dtype: torch.dtype = torch.float32) -> float:
    expected, got = both(case, heads, dtype, CpuRows(heads.rope("cpu")))
    return float((got - expected).abs().max())


@pytest.mark.parametrize("heads", SHAPES, ids=str)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_equals_the_oracle(make, heads: Heads) -> None:
    assert error(make(), heads) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [in_place, mixed], ids=lambda make: make.__name__)
def test_half_precision(make, dtype: torch.dtype) -> None:
    assert error(make(), Heads(dim=128, heads=8, kv_heads=2), dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("seed", range(4))
def test_random_sequences(seed: int) -> None:
    case = Case(200 + seed)
    for _ in range(int(case.random.integers(1, 6))):
        runs = [(int(case.random.integers(1, 200)), int(case.random.integers(-9000, 9000))) for _ in range(3)]
        length = sum(run_length for run_length, _ in runs)
        first = int(case.random.integers(0, length))
        case.add(np.arange(first, length) if case.random.random() < 0.5 else [length - 1], runs)
    assert error(case.mix_rows(), Heads(heads=6, kv_heads=2, dim=32)) < TOLERANCE[torch.float32]


def test_the_cases_take_the_fast_ways() -> None:
    backend = CpuRows(Heads().rope("cpu"))
    prepared = backend.prepare(in_place().sequences)
    assert prepared.decodes is not None
    assert prepared.decodes.keys == ((5, 100), (110, 3))
    assert (len(prepared.chunks), len(prepared.others)) == (4, 0)
    assert backend.prepare(decodes_in_place().sequences).others == ()


@pytest.mark.parametrize("seed", range(3))
def test_decodes_whose_rows_stand_in_another_order(seed: int) -> None:
    """Rows are sorted by depth, sequences are not."""
    case = decodes_in_place()
    if seed == 0:
        case.sequences.reverse()
    else:
        case.random = np.random.default_rng(seed)
        case.mix_rows()
    assert error(case, Heads()) < TOLERANCE[torch.float32]
