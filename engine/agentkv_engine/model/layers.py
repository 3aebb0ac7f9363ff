"""The blocks of a Llama-family decoder, over rows.

Shapes: N rows of a step, W rows that write in this layer, A rows that attend, H heads, K kv heads, D head dimension,
E hidden size. Rows are sorted by depth, deepest first, so `x[:A]` are the rows that go on.
"""

import torch
from torch import Tensor, nn

from agentkv_engine.model.linear import Linear
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.operations import Operations, rms_norm
from agentkv_engine.model.step import Step


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467), in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NE: Tensor) -> Tensor:
        return rms_norm(x_NE, self.weight, self.eps)

    def after_adding(self, x_NE: Tensor, delta_NE: Tensor | None, operations: Operations) -> tuple[Tensor, Tensor]:
        """The residual stream with what the last block adds to it, and that sum normalised."""
        return operations.add_norm(x_NE, delta_NE, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention of a step's rows over the keys that lie in the pool.

    Queries, keys and values come from one matrix product: `qkv` holds the checkpoint's three, one below the other.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.group_size = config.num_heads // config.num_kv_heads
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, queries + 2 * keys, bias=config.qkv_bias)
        self.output = Linear(queries, config.hidden_size, bias=config.output_bias)
        self.split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.head_dim = config.head_dim
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def project(self, x_NE: Tensor) -> Tensor:
        """Queries, keys and values [N, X] before rotation; each head's queries and keys are normalised where the model
        does that (Qwen3)."""
        qkv_NX = self.qkv(x_NE)
        if self.q_norm is None or self.k_norm is None:
            return qkv_NX
        q_NHD, k_NKD, v_NKD = qkv_NX.unflatten(-1, (-1, self.head_dim)).split(self.split, dim=1)
        return torch.cat([self.q_norm(q_NHD), self.k_norm(k_NKD), v_NKD], dim=1).flatten(1)

    def forward(self, x_WE: Tensor, step: Step) -> Tensor:
        """Put all rows' K and V into their slots; attend with those that go on."""
        num_attending = step.num_attending(self.index)
        q_AHD = step.operations.rotate_and_store(
            self.project(x_WE), step.places.first(x_WE.shape[0]), num_attending, step.pool, self.index
        )
        step.record(self.index, q_AHD)
        q_AHD = step.going_on(self.index, q_AHD)
        if q_AHD.shape[0] == 0:
            return x_WE[:0]
        out_AHD = step.backend.attend(q_AHD, self.index, step.pool, step.attention(self.index))
        out_AE = self.output(out_AHD.flatten(1))
        self._trace(q_AHD, out_AE, step)
        return out_AE

    def _trace(self, q_AHD: Tensor, out_AE: Tensor, step: Step) -> None:
        """Leave these rows' queries, rotated at home like their keys, and what they read, where the layer is traced."""
        traces = step.pool.traces
        if traces is None or self.index not in traces.layers:
            return
        places = step.places.first(len(q_AHD))
        step.operations.keep_queries(q_AHD, places, traces.in_layer(self.index))
        traces.write_sketches(self.index, places.slots_N, out_AE)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202); `gate_up` holds the checkpoint's two matrices, one below the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_NE: Tensor, step: Step) -> Tensor:
        return self.down(step.operations.swiglu(self.gate_up(x_NE)))


class DecoderLayer(nn.Module):
    """All rows that reach this layer write their K and V; those whose depth lies beyond it go on through it.

    What a block adds to the residual stream travels beside it until the next norm, which adds it on its way.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, index)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_WE: Tensor, delta_WE: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        x_WE, normed_WE = self.attention_norm.after_adding(x_WE, delta_WE, step.operations)
        attended_AE = self.attention(normed_WE, step)
        x_AE = step.going_on(self.index, x_WE)
        if x_AE.shape[0] == 0:
            return x_AE, attended_AE
        x_AE, normed_AE = self.mlp_norm.after_adding(x_AE, attended_AE, step.operations)
        delta_AE = self.mlp(normed_AE, step)
        traces = step.pool.traces
        if traces is not None and self.index in traces.layers:
            traces.write_lengths(self.index, step.places.slots_N[: len(x_AE)], x_AE + delta_AE)
        return x_AE, delta_AE
