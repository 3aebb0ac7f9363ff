"""Weights in 8 bits: one scale for every output channel, activations as they are (LLM.int8(), arXiv 2208.07339, has the
same grid and also quantises activations; this does not).

Shapes: M rows, N output channels, K inputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 12
"""Up to so many rows torch's kernel reads the weights in 8 bits; beyond, converting them first takes less time. (It has
a fast path for bfloat16 only.)"""

BLOCK_WEIGHTS = 1 << 20
"""Weights that are converted at once: the converted ones stay in the processor's cache."""


class Int8Linear(nn.Module):
    """`nn.Linear` with its weight in 8 bits.

    Args:
        weight_NK, scales_N: as `quantise` gives them.
        bias: in the scales' dtype, or None.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, weight_NK: Tensor, scales_N: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight_NK)
        self.register_buffer("scales", scales_N)
        self.bias = bias

    def forward(self, x_MK: Tensor) -> Tensor:
        if x_MK.dtype is torch.bfloat16 and len(x_MK) <= FEW_ROWS:
            out_MN = torch.ops.aten._weight_int8pack_mm(x_MK.contiguous(), self.weight, self.scales)
        else:
            out_MN = self._converted(x_MK)
        return out_MN if self.bias is None else out_MN + self.bias

    def _converted(self, x_MK: Tensor) -> Tensor:
        size = max(1, BLOCK_WEIGHTS // x_MK.shape[-1])
        blocks = [F.linear(x_MK, block_NK.to(x_MK.dtype)) for block_NK in self.weight.split(size)]
        return (blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)).mul_(self.scales)


class Int8Embedding(nn.Module):
    """`nn.Embedding` with its table in 8 bits, which may be an `Int8Linear`'s weight too."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight_NK: Tensor, scales_N: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight_NK)
        self.register_buffer("scales", scales_N)

    def forward(self, token_ids_M: Tensor) -> Tensor:
        return self.weight[token_ids_M].to(self.scales.dtype) * self.scales[token_ids_M].unsqueeze(-1)


def quantise(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in int8, symmetric, with the scale [N] of each row: weight = int8 x scale, in the weight's dtype.

    The scale is rounded to that dtype before it is used, so that it adds no error of its own.
    """
    scales_N = (weight_NK.abs().amax(1).float() / 127).clamp_min_(torch.finfo(torch.float32).tiny).to(weight_NK.dtype)
    exact_NK = weight_NK.float() / scales_N.float().unsqueeze(1)
    return exact_NK.round_().clamp_(-127, 127).to(torch.int8), scales_N


def quantise_linears(module: nn.Module) -> None:
    """Put every linear below `module` into 8 bits."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(*quantise(child.weight), child.bias))
        else:
            quantise_linears(child)
