"""The embedded model as it is trained: Qwen2's arithmetic, written plainly, with Hugging Face's names for its weights.

Shapes: B batch, T tokens, D width, N heads, H head dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The architecture; every key and value head is its own (no grouped queries: the constructed heads need theirs)."""

    vocab_size: int = 4096
    width: int = 256
    layers: int = 10
    heads: int = 8
    head_dim: int = 64
    mlp: int = 768
    rope_theta: float = 1e5
    norm_eps: float = 1e-6
    context: int = 8192

    def to_dict(self) -> dict[str, float | int]:
        """Plain data, for checkpoints."""
        return asdict(self)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        x32 = x_BTD.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x_BTD.dtype) * x32.to(x_BTD.dtype)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer in the dtype of its input; the master weights stay as they are."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


def rope_tables(shape: Shape, length: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """cos and sin, [T, H], in the rotate-half layout of Llama and Qwen2."""
    pairs = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32) / shape.head_dim
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * shape.rope_theta ** -pairs[None]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BNTH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Rotary position embedding."""
    a, b = x_BNTH.chunk(2, dim=-1)
    return x_BNTH * cos_TH + torch.cat([-b, a], dim=-1) * sin_TH


class Attention(nn.Module):
    """Causal self-attention with biases on queries, keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_dim
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.q_proj = nn.Linear(shape.width, inner)
        self.k_proj = nn.Linear(shape.width, inner)
        self.v_proj = nn.Linear(shape.width, inner)
        self.o_proj = nn.Linear(inner, shape.width, bias=False)

    def forward(self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        q, k, v = (
            linear(x_BTD, projection).view(B, T, self.heads, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = cos_TH.to(q.dtype), sin_TH.to(q.dtype)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return linear(mixed.transpose(1, 2).reshape(B, T, -1), self.o_proj)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return linear(F.silu(linear(x_BTD, self.gate_proj)) * linear(x_BTD, self.up_proj), self.down_proj)


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TH, sin_TH)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embedding, blocks and final norm; the output layer is the embedding itself."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_eps)

    def hidden(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """The normalised last hidden states, [B, T, D]."""
        cos, sin = rope_tables(self.shape, ids_BT.shape[1], ids_BT.device)
        x = F.embedding(ids_BT, self.embed_tokens.weight).to(dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def forward(self, ids_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits, [B, T, V]."""
        return F.linear(self.hidden(ids_BT, dtype), self.embed_tokens.weight.to(dtype))
