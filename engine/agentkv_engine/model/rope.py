"""Rotary position embedding (RoFormer, arXiv 2104.09864), and the *turn* that moves a run of keys to another position.

Shapes: N rows, H heads, D head dimension; the first half of D is rotated against the second (`rotate_half` layout).
A rotation is a pair (cos, sin) of [N, D/2] in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from agentkv_engine.errors import CheckpointError, UnsupportedModel
from agentkv_engine.model.model_config import RopeConfig

Rotation = tuple[Tensor, Tensor]


def rotate(x_NHD: Tensor, rotation: Rotation) -> Tensor:
    """Turn each head of each row by its angles, in float32; the result has the dtype of `x_NHD`."""
    cos_N11D, sin_N1D = rotation[0][:, None, None], rotation[1].unsqueeze(1)
    halves_NH2D = x_NHD.float().unflatten(-1, (2, -1))
    turned_NH2D = halves_NH2D * cos_N11D
    first, second = halves_NH2D.unbind(2)
    low, high = turned_NH2D.unbind(2)
    low.addcmul_(second, sin_N1D, value=-1)
    high.addcmul_(first, sin_N1D)
    return turned_NH2D.flatten(2).to(x_NHD.dtype)


def inverse(rotation: Rotation) -> Rotation:
    """The rotation by the opposite angles."""
    return rotation[0], -rotation[1]


class RotaryEmbedding(nn.Module):
    """Angles of positions, and of offsets between positions, for one model.

    The frequencies are fixed for the life of the process, so that keys stay where they were put.

    Args:
        config: the model's.
        head_dim: width of a head.
        context_length: most positions the engine runs with. Longrope has two sets of frequencies, and takes that for
            short contexts only where no chat can grow beyond them. None takes the most the model was made for.

    Raises:
        UnsupportedModel: a RoPE type whose frequencies change with the length (dynamic NTK) or that is not known.
        CheckpointError: the type lacks a number that it needs.
    """

    inverse_frequencies: Tensor

    def __init__(self, config: RopeConfig, head_dim: int, context_length: int | None = None) -> None:
        super().__init__()
        _refuse_unsupported(config)
        try:
            with torch.device("cpu"):  # also where a decoder is built on the meta device
                found = _FREQUENCIES[config.rope_type](config, head_dim, context_length)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"config.json's {config.rope_type!r} rope scaling lacks {error}, or it is no number"
            ) from None
        frequencies, self.attention_factor = found
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def at_positions(self, positions_N: Tensor) -> Rotation:
        """Rotation of rows at these positions, times the attention factor of YaRN or longrope.

        Angles are float32 products, as in `transformers`: the checkpoint was trained with their rounding.
        """
        angles = positions_N.float().unsqueeze(1) * self.inverse_frequencies
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

    def by_offsets(self, offsets_N: Tensor) -> Rotation:
        """The pure rotation by `offsets_N` positions (any sign, any size), from float64 angles, without the factor."""
        angles = offsets_N.double().unsqueeze(1) * self.inverse_frequencies.double()
        return angles.cos().float(), angles.sin().float()


def _refuse_unsupported(config: RopeConfig) -> None:
    if config.rope_type == "dynamic":
        raise UnsupportedModel(
            "rope type 'dynamic' (NTK) is not supported: its frequencies change as a chat grows, so a key that was "
            "kept can't be turned to another position any more; use a checkpoint with fixed scaling (yarn, longrope), "
            "or take rope_scaling out of config.json, for the context length before it was stretched"
        )
    if config.rope_type not in _FREQUENCIES:
        raise UnsupportedModel(f"rope type {config.rope_type!r} is not supported; known are {', '.join(_FREQUENCIES)}")
    share = config.parameters.get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise UnsupportedModel(f"rotary embedding of a part of each head ({share} of it) is not supported")


def _unscaled(config: RopeConfig, head_dim: int) -> Tensor:
    return 1.0 / _stretches(config, head_dim)


def _stretches(config: RopeConfig, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    return config.theta**exponents


def _default(config: RopeConfig, head_dim: int, _context_length: int | None) -> tuple[Tensor, float]:
    return _unscaled(config, head_dim), 1.0


def _linear(config: RopeConfig, head_dim: int, _context_length: int | None) -> tuple[Tensor, float]:
    """Position interpolation (arXiv 2306.15595)."""
    return _unscaled(config, head_dim) / config.parameters["factor"], 1.0


def _llama3(config: RopeConfig, head_dim: int, _context_length: int | None) -> tuple[Tensor, float]:
    """Llama 3.1: long wavelengths stretched by `factor`, short ones left, a smooth ramp between."""
    frequencies, p = _unscaled(config, head_dim), config.parameters
    wavelengths = 2 * math.pi / frequencies
    trained = p["original_max_position_embeddings"]
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    ramp = (trained / wavelengths - low) / (high - low)
    smooth = (1 - ramp) * frequencies / p["factor"] + ramp * frequencies
    stretched = torch.where(wavelengths > trained / low, frequencies / p["factor"], frequencies)
    between = (wavelengths >= trained / high) & (wavelengths <= trained / low)
    return torch.where(between, smooth, stretched), 1.0


def _yarn(config: RopeConfig, head_dim: int, _context_length: int | None) -> tuple[Tensor, float]:
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
    frequencies = _unscaled(config, head_dim)
    mixed = frequencies / factor * (1 - extrapolated) + frequencies * extrapolated
    return mixed, _yarn_attention_factor(p, factor)


def _longrope(config: RopeConfig, head_dim: int, context_length: int | None) -> tuple[Tensor, float]:
    """LongRoPE (arXiv 2402.13753) as Phi-3 has it: a factor for every frequency, one set for contexts up to the
    trained length and one beyond. Which one is chosen once, by the longest chat that may come: the model's own code
    looks at each prompt, and would recompute all keys where a chat outgrows the first set."""
    p = config.parameters
    trained, longest = p["original_max_position_embeddings"], p["max_position_embeddings"]
    chosen = "long_factor" if (context_length or longest) > trained else "short_factor"
    factors = torch.tensor(p[chosen], dtype=torch.float)
    if len(factors) != head_dim // 2:
        raise CheckpointError(
            f"config.json's {chosen} of rope has {len(factors)} numbers, and heads of width {head_dim} need "
            f"{head_dim // 2}"
        )
    stretch = p.get("factor") or longest / trained
    attention_factor = p.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
    return 1.0 / (factors * _stretches(config, head_dim)), float(attention_factor)


def _yarn_attention_factor(p: dict[str, float], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return mscale(p["mscale"]) / mscale(p["mscale_all_dim"])
    return mscale(1.0)


_FREQUENCIES: dict[str, Callable[[RopeConfig, int, int | None], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
