"""Rotary position embedding (RoFormer, arXiv 2104.09864), and the *turn* that moves a run of keys to another position.

Shapes: N rows, H heads, D head dimension; the first half of D is rotated against the second (`rotate_half` layout).
A rotation is a pair (cos, sin) of [N, D/2] in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from agentkv_engine.errors import UnsupportedModel
from agentkv_engine.model.model_config import RopeConfig

Rotation = tuple[Tensor, Tensor]


def rotate(x_NHD: Tensor, rotation: Rotation) -> Tensor:
    """Turn each head of each row by its angles, in float32; the result has the dtype of `x_NHD`."""
    cos_N1D, sin_N1D = rotation[0].unsqueeze(1), rotation[1].unsqueeze(1)
    first, second = x_NHD.float().chunk(2, dim=-1)
    turned = torch.empty(x_NHD.shape, dtype=torch.float32, device=x_NHD.device)
    low, high = turned.chunk(2, dim=-1)
    torch.mul(first, cos_N1D, out=low).addcmul_(second, sin_N1D, value=-1)
    torch.mul(second, cos_N1D, out=high).addcmul_(first, sin_N1D)
    return turned.to(x_NHD.dtype)


def inverse(rotation: Rotation) -> Rotation:
    """The rotation by the opposite angles."""
    return rotation[0], -rotation[1]


class RotaryEmbedding(nn.Module):
    """Angles of positions, and of offsets between positions, for one model.

    The frequencies are fixed for the life of the process.

    Raises:
        UnsupportedModel: a RoPE type whose frequencies change with the length (dynamic NTK) or that is not known.
    """

    inverse_frequencies: Tensor

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__()
        if config.rope_type not in _FREQUENCIES:
            raise UnsupportedModel(
                f"rope type {config.rope_type!r} is not supported (frequencies that change with the length would "
                f"make kept keys useless); supported are {', '.join(_FREQUENCIES)}"
            )
        frequencies, self.attention_factor = _FREQUENCIES[config.rope_type](config, head_dim)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def at_positions(self, positions_N: Tensor) -> Rotation:
        """Rotation of rows at these positions, times YaRN's attention factor where there is one.

        Angles are float32 products, as in `transformers`: the checkpoint was trained with their rounding.
        """
        angles = positions_N.float().unsqueeze(1) * self.inverse_frequencies
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

    def by_offsets(self, offsets_N: Tensor) -> Rotation:
        """The pure rotation by `offsets_N` positions (any sign, any size), from float64 angles, without the factor."""
        angles = offsets_N.double().unsqueeze(1) * self.inverse_frequencies.double()
        return angles.cos().float(), angles.sin().float()


def _default(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    return 1.0 / (config.theta**exponents), 1.0


def _linear(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    return _default(config, head_dim)[0] / config.parameters["factor"], 1.0


def _llama3(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Llama 3.1: long wavelengths stretched by `factor`, short ones left, a smooth ramp between."""
    frequencies, p = _default(config, head_dim)[0], config.parameters
    wavelengths = 2 * math.pi / frequencies
    trained = p["original_max_position_embeddings"]
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    ramp = (trained / wavelengths - low) / (high - low)
    smooth = (1 - ramp) * frequencies / p["factor"] + ramp * frequencies
    stretched = torch.where(wavelengths > trained / low, frequencies / p["factor"], frequencies)
    between = (wavelengths >= trained / high) & (wavelengths <= trained / low)
    return torch.where(between, smooth, stretched), 1.0


def _yarn(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071), section 3.2 (frequencies by parts) and 3.4 (attention factor)."""
    p, base = config.parameters, config.theta
    factor, trained = p["factor"], p["original_max_position_embeddings"]

    def dimension_of(rotations: float) -> float:
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_of(p.get("beta_fast") or 32), dimension_of(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float) - low) / ((high - low) or 0.001)
    extrapolated = 1 - ramp.clamp(0, 1)
    frequencies = _default(config, head_dim)[0]
    mixed = frequencies / factor * (1 - extrapolated) + frequencies * extrapolated
    return mixed, _yarn_attention_factor(p, factor)


def _yarn_attention_factor(p: dict[str, float], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return mscale(p["mscale"]) / mscale(p["mscale_all_dim"])
    return mscale(1.0)


_FREQUENCIES: dict[str, Callable[[RopeConfig, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
