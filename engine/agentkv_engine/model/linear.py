"""Matrix products of a few rows on CPU, cut so that what is read of the weights stays in the processor's cache.

MKL copies a matrix before it multiplies more than two rows with it: for a matrix larger than the cache, that is to read
it twice. A batch of products with pieces of it gives the same sums and takes up to half the time (evals/LOG.md).

Shapes: M rows, K inputs, N outputs, P pieces.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = range(3, 16)
"""So many rows are multiplied piece by piece: fewer are not copied for, more are worth the copy."""

PIECE_WEIGHTS = 1 << 16
"""Most weights of a piece, 256 KiB."""

LEAST_WEIGHTS = 1 << 18
"""A smaller matrix stays whole."""


class Linear(nn.Linear):
    """`nn.Linear` that multiplies a few rows piece by piece."""

    def forward(self, input: Tensor) -> Tensor:
        weight_NK = self.weight
        few = input.shape[0] in FEW_ROWS and weight_NK.dtype is torch.float32 and weight_NK.is_cpu
        size = piece_size(*weight_NK.shape) if few else None
        if size is None:
            return F.linear(input, weight_NK, self.bias)
        out_MN = multiply_in_pieces(input, weight_NK, size)
        return out_MN if self.bias is None else out_MN.add_(self.bias)


@lru_cache
def piece_size(num_outputs: int, num_inputs: int) -> int | None:
    """Outputs of a piece: the most that divide them all and are few enough; None where a matrix stays whole."""
    most = PIECE_WEIGHTS // num_inputs
    if num_outputs * num_inputs < LEAST_WEIGHTS or most < 1:
        return None
    size = max(size for size in range(1, most + 1) if num_outputs % size == 0)
    return size if size >= most // 4 else None


def multiply_in_pieces(x_MK: Tensor, weight_NK: Tensor, size: int) -> Tensor:
    """x times the transposed weight [M, N], in pieces of `size` outputs."""
    num_rows, num_inputs = x_MK.shape
    pieces_PSK = weight_NK.view(-1, size, num_inputs)
    out_PMS = torch.bmm(x_MK.expand(pieces_PSK.shape[0], -1, -1), pieces_PSK.transpose(1, 2))
    return out_PMS.transpose(0, 1).reshape(num_rows, -1)
