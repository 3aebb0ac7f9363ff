"""Models of random weights, made where they run: no checkpoint is read."""

from typing import Any

import torch

from agentkv_engine.model.model_config import ModelConfig, RopeConfig
from agentkv_engine.model.random_weights import random_decoder

__all__ = ["SHAPES", "device_dtype", "random_decoder"]

_COMMON: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "norm_eps": 1e-5,
    "qkv_bias": False,
    "output_bias": False,
    "mlp_bias": False,
}
_LLAMA3_ROPE = RopeConfig(
    rope_type="llama3",
    theta=500_000.0,
    parameters={
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)

SHAPES: dict[str, ModelConfig] = {
    "llama-3.1-8b": ModelConfig(
        **_COMMON,
        tied_embeddings=False,
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        rope=_LLAMA3_ROPE,
        context_length=131_072,
    ),
    # Its sizes, without the norms of queries and keys that Qwen3 has.
    "qwen3-0.6b-like": ModelConfig(
        **_COMMON,
        tied_embeddings=True,
        num_layers=28,
        hidden_size=1024,
        intermediate_size=3072,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        rope=RopeConfig(rope_type="default", theta=1_000_000.0, parameters={}),
        context_length=40_960,
    ),
    "qwen2.5-14b": ModelConfig(
        **_COMMON | {"architecture": "Qwen2ForCausalLM", "norm_eps": 1e-6, "qkv_bias": True},
        tied_embeddings=False,
        num_layers=48,
        hidden_size=5120,
        intermediate_size=13824,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=152_064,
        rope=RopeConfig(rope_type="default", theta=1_000_000.0, parameters={}),
        context_length=32_768,
    ),
    "small": ModelConfig(
        **_COMMON,
        tied_embeddings=False,
        num_layers=4,
        hidden_size=256,
        intermediate_size=768,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=1024,
        rope=RopeConfig(rope_type="default", theta=10_000.0, parameters={}),
        context_length=131_072,
    ),
}


def device_dtype(device: str) -> torch.dtype:
    """Of weights and KV: float32 on CPU, else bfloat16."""
    return torch.float32 if device == "cpu" else torch.bfloat16
