"""The one forward pass: chunks, decodes, probes and repairs are rows of it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentkv_engine.model.layers import DecoderLayer, RMSNorm
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.rope import RotaryEmbedding
from agentkv_engine.model.step import Step


class Decoder(nn.Module):
    """A Llama-family decoder over rows (Llama, Qwen2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.rope = RotaryEmbedding(config.rope, config.head_dim)

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Run a step's rows; returns float32 logits [len(step.logits_rows), vocabulary]."""
        x = F.embedding(step.token_ids_N, self.embedding.weight)
        for index, layer in enumerate(self.layers):
            if step.num_writing(index) == 0:  # every row was shallower: nothing goes on
                break
            x = layer(x[: step.num_writing(index)], step)
        if len(step.logits_rows) == 0:
            return x.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.head(self.norm(x[step.logits_rows])).float()
