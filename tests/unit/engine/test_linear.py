"""Products of a few rows in pieces equal the whole."""

import pytest
import torch
from torch import nn

from agentkv_engine.model.linear import FEW_ROWS, Linear, piece_size


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 15, 16])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 4096), (512, 2752), (1376, 512), (64, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torchs(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = Linear(inputs, outputs, bias=bias)
    x = torch.randn(rows, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


def test_pieces_divide_the_outputs_and_fit_the_cache() -> None:
    assert piece_size(2752, 512) == 86
    assert piece_size(4096, 256) == 256
    assert piece_size(64, 64) is None  # fits as it is
    assert piece_size(65_537, 512) is None  # a prime number of outputs
    assert 8 in FEW_ROWS
    assert not {1, 2, 16} & set(FEW_ROWS)
