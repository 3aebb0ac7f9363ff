"""Weights of normal random numbers, made where they run: no checkpoint is read. Fair for speed, never for quality."""

from dataclasses import dataclass

import torch
from torch import nn

from agentkv_engine.model.checkpoint import empty_decoder
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.rope import RotaryEmbedding

STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWeights:
    """A model that is drawn instead of read."""

    config: ModelConfig
    seed: int = 0


def random_decoder(
    config: ModelConfig, *, dtype: torch.dtype, device: str, seed: int, layers: range | None = None
) -> Decoder:
    """A decoder of random weights, or a stage of one (see `Decoder.keep_layers`)."""
    rope = RotaryEmbedding(config.rope, config.head_dim, config.context_length).to(device)
    decoder = empty_decoder(config)
    if layers is not None:
        decoder.keep_layers(layers)
    decoder = decoder.to(dtype).to_empty(device=device)
    decoder.rope = rope
    if config.tied_embeddings and hasattr(decoder, "head") and hasattr(decoder, "embedding"):
        decoder.head.weight = decoder.embedding.weight
    generator = torch.Generator(device=device).manual_seed(seed)
    for parameter in decoder.requires_grad_(False).parameters():
        if parameter.dim() == 1:  # norms
            nn.init.ones_(parameter)
        else:
            parameter.normal_(std=STD, generator=generator)
    return decoder.eval()
