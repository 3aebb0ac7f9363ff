"""The constructed initialisation: heads that can look things up before training starts.

The residual stream is split into orthonormal subspaces: A (which token stands here), U1 to U4 (which token stood one to
four places before) and C (what is known of it). Layer 0 fills U1 to U4 by position alone; the next layers hold heads
that find the row whose U matches, and copy what is known there. Without this start a model of this size stays at chance
for thousands of steps; training then changes all of it freely.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agentkv_evals.training.model import Attention, Block, Decoder, Shape

OFFSETS = (1, 2, 3, 4)
SUBSPACES = ("A", "U1", "U2", "U3", "U4", "C")
POSITION_PAIRS = 6
RECENCY_PAIRS = (12, 14)
_MATCHES = (("A", "U2"), ("A", "U3"), ("A", "U4"), ("A", "U2"), ("A", "U4"), ("A", "U1"), ("U1", "U2"), ("U3", "U4"))
"""(query subspace, key subspace) of the eight heads of each matching layer."""


def construct(model: Decoder, seed: int, matching_layers: int = 5) -> None:
    """Initialise `model` in place: normal(0, 0.02), then position heads in layer 0 and matching heads behind it."""
    shape = model.shape
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        std = 0.02 / math.sqrt(2 * shape.layers) if "o_proj" in name or "down_proj" in name else 0.02
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)
    spaces = _subspaces(shape, generator)
    for head, offset in enumerate(OFFSETS):
        _position_head(model, head, offset, spaces["A"], spaces[f"U{offset}"])
    matching_layers = min(matching_layers, shape.layers - 1)
    for layer in range(1, 1 + matching_layers):
        for head, (query, key) in enumerate(_MATCHES):
            if query == "A" and key == "U1" and layer > 2:
                continue
            copied = _copied(head, key, layer, spaces, shape, generator)
            strength = 0.06 if key == "U1" else 0.12
            _matching_head(model, layer, head, (spaces[query], spaces[key]), copied, strength)
    for layer in range(1 + matching_layers, shape.layers):
        for head, offset in enumerate((1, 3)):
            _position_head(model, head, offset, spaces["C"], spaces["C"], layer=layer)


def _attention(model: Decoder, layer: int) -> Attention:
    block = model.layers[layer]
    assert isinstance(block, Block)
    return block.self_attn


def _subspaces(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Orthonormal bases, [D, D // 6] each."""
    basis, _ = torch.linalg.qr(torch.randn(shape.width, shape.width, generator=generator))
    size = shape.width // len(SUBSPACES)
    return {name: basis[:, i * size : (i + 1) * size] for i, name in enumerate(SUBSPACES)}


def _copied(head: int, key: str, layer: int, spaces: dict[str, Tensor], shape: Shape, gen: torch.Generator) -> Tensor:
    """What a matching head copies: what is known, the token itself (the induction head), or a random mixture."""
    if key == "U1":
        return spaces["A"]
    if head in (3, 4) and layer > 0:
        basis, _ = torch.linalg.qr(torch.randn(shape.width, shape.head_dim, generator=gen))
        return basis[:, : spaces["C"].shape[1]]
    return spaces["C"]


def _position_head(model: Decoder, head: int, offset: int, source: Tensor, target: Tensor, layer: int = 0) -> None:
    """A head that attends `offset` tokens back, by biases on the fastest rotary pairs, and copies source to target."""
    shape, attention = model.shape, _attention(model, layer)
    half = shape.head_dim // 2
    rows = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    q_bias, k_bias = torch.zeros(shape.head_dim), torch.zeros(shape.head_dim)
    for pair in range(POSITION_PAIRS):
        angle = -offset * frequencies[pair]
        k_bias[pair] = 6.0
        q_bias[pair], q_bias[pair + half] = 6.0 * torch.cos(angle), 6.0 * torch.sin(angle)
    with torch.no_grad():
        attention.q_proj.bias[rows], attention.k_proj.bias[rows] = q_bias, k_bias
        _copy_through(model, layer, head, source, target, 0.05)


def _matching_head(
    model: Decoder, layer: int, head: int, spaces: tuple[Tensor, Tensor], copied: Tensor, strength: float
) -> None:
    """A head whose query subspace is compared with a key subspace on the slow rotary pairs; late rows win ties."""
    shape, attention = model.shape, _attention(model, layer)
    half = shape.head_dim // 2
    slow = [pair for pair in range(half - 1, -1, -1) if pair not in RECENCY_PAIRS]
    size = spaces[0].shape[1]
    slots = [dim for pair in slow for dim in (pair, pair + half)][:size]
    rows = head * shape.head_dim
    index = torch.tensor(slots) + rows
    with torch.no_grad():
        attention.q_proj.weight[index] = 4.0 * spaces[0].T
        attention.k_proj.weight[index] = 4.0 * spaces[1].T
        for pair in RECENCY_PAIRS:
            attention.q_proj.bias[rows + pair] = attention.k_proj.bias[rows + pair] = 4.0
        _copy_through(model, layer, head, copied, copied, strength)


def _copy_through(model: Decoder, layer: int, head: int, source: Tensor, target: Tensor, strength: float) -> None:
    """Values read `source`, the output writes `strength` times them to `target`."""
    shape, attention = model.shape, _attention(model, layer)
    rows = head * shape.head_dim + torch.arange(source.shape[1])
    with torch.no_grad():
        attention.v_proj.weight[rows] = source.T
        attention.o_proj.weight[:, rows] = strength * target
