"""The blocks of a Llama-family decoder, over rows.

Shapes: N rows of a step, W rows that write in this layer, A rows that attend, H heads, K kv heads, D head dimension,
E hidden size. Rows are sorted by depth, deepest first, so `x[:A]` are the rows that go on.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.rope import inverse, rotate
from agentkv_engine.model.step import Step


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467), in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NE: Tensor) -> Tensor:
        exact_NE = x_NE.float()
        mean_square_N1 = torch.linalg.vector_norm(exact_NE, dim=-1, keepdim=True).square_() / exact_NE.shape[-1]
        return (exact_NE * (mean_square_N1 + self.eps).rsqrt_()).to(x_NE.dtype).mul_(self.weight)


class Attention(nn.Module):
    """Grouped-query attention of a step's rows over the keys that lie in the pool."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        self.group_size = config.num_heads // config.num_kv_heads
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.output = nn.Linear(queries, config.hidden_size, bias=config.output_bias)

    def write(self, x_WE: Tensor, step: Step) -> None:
        """Put these rows' K and V into their slots. K of a row in a run is stored at the run's home positions."""
        k_WKD = rotate(self._heads(self.k(x_WE)), step.rotation(len(x_WE)))
        _turn_home(k_WKD, step)
        step.pool.write(self.index, step.slots_N[: len(x_WE)], k_WKD, self._heads(self.v(x_WE)))

    def forward(self, x_AE: Tensor, step: Step) -> Tensor:
        q_AHD = rotate(self._heads(self.q(x_AE)), step.rotation(len(x_AE)))
        step.record(self.index, q_AHD)
        self._store_queries(q_AHD, step)
        out_AHD = step.backend.attend(q_AHD, self.index, step.pool, step.attention(self.index))
        return self.output(out_AHD.flatten(1))

    def _store_queries(self, q_AHD: Tensor, step: Step) -> None:
        """Keep these rows' queries beside their keys, rotated at home like those, where the pool wants them."""
        if step.pool.queries is None:
            return
        q_AKD = q_AHD.unflatten(1, (-1, self.group_size)).mean(2)
        _turn_home(q_AKD, step)
        step.pool.queries.write(self.index, step.slots_N[: len(q_AKD)], q_AKD)

    def _heads(self, x_NE: Tensor) -> Tensor:
        return x_NE.unflatten(-1, (-1, self.head_dim))


def _turn_home(x_NHD: Tensor, step: Step) -> None:
    """Turn the first rows' vectors, in place, from the reader's positions to the home positions of their runs."""
    if (turned := step.turned_rows(len(x_NHD))) is not None:
        rows, offset_rotation = turned
        x_NHD[rows] = rotate(x_NHD[rows], inverse(offset_rotation))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_NE: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_NE)) * self.up(x_NE))


class DecoderLayer(nn.Module):
    """All rows that reach this layer write their K and V; those whose depth lies beyond it go on through it."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, index)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_WE: Tensor, step: Step) -> Tensor:
        normed_WE = self.attention_norm(x_WE)
        self.attention.write(normed_WE, step)
        num_attending = step.num_attending(self.index)
        x_AE = x_WE[:num_attending]
        x_AE = x_AE + self.attention(normed_WE[:num_attending], step)
        x_AE = x_AE + self.mlp(self.mlp_norm(x_AE))
        if step.pool.queries is not None:
            step.pool.queries.write_lengths(self.index, step.slots_N[:num_attending], x_AE)
        return x_AE
