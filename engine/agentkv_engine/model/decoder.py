"""The one forward pass: chunks, decodes, probes and repairs are rows of it."""

from typing import cast

import torch
from torch import Tensor, nn

from agentkv_engine.model.int8 import Int8Embedding, Int8Linear
from agentkv_engine.model.layers import DecoderLayer, RMSNorm
from agentkv_engine.model.linear import Linear
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.operations import Operations
from agentkv_engine.model.rope import RotaryEmbedding
from agentkv_engine.model.step import Step


class Decoder(nn.Module):
    """A Llama-family decoder over rows (see `registry.FAMILIES`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding: nn.Embedding | Int8Embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head: nn.Linear | Int8Linear = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.rope = RotaryEmbedding(config.rope, config.head_dim, config.context_length)

    def keep_layers(self, layers: range) -> None:
        """Become a stage of the model: these layers, numbered from 0, the embedding where they are the first, the head
        where they are the last."""
        kept = [cast(DecoderLayer, self.layers[index]) for index in layers]
        for index, layer in enumerate(kept):
            layer.index = layer.attention.index = index
        self.layers = nn.ModuleList(kept)
        if layers.start > 0:
            del self.embedding
        if layers.stop < self.config.num_layers:
            del self.head

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, keys and values."""
        return self.norm.weight.dtype

    @property
    def num_layers(self) -> int:
        """Layers that are here: the model's, or a stage's."""
        return len(self.layers)

    @property
    def begins(self) -> bool:
        """Whether it begins with token ids; a later stage begins with what comes out of the one before."""
        return hasattr(self, "embedding")

    @torch.inference_mode()
    def forward(self, step: Step, before: Tensor | None = None) -> Tensor:
        """Run a step's rows (`before`: see `hidden`); returns float32 logits [len(step.logits_rows), vocabulary]."""
        x, delta = self.hidden(step, before)
        for pooled in step.pooled:
            pooled.into.add(self.last_states(x, delta, pooled.rows, step.operations))
        return self.logits(x, delta, None if step.ends_early else step.logits_rows, step.operations)

    def hidden(self, step: Step, before: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Residual stream of the rows of full depth behind the last layer (where the step ends early, of its
        `logits_rows`), and what the last block adds to it.

        Args:
            before: what comes out of the layers before, where these are a stage's; None begins with the tokens.
        """
        delta: Tensor | None = None
        x = self.embedding(step.token_ids_N) if before is None else before
        for index, layer in enumerate(self.layers):
            num_writing = step.num_writing(index)
            if num_writing == 0:  # every row was shallower: nothing goes on
                break
            x, delta = layer(x[:num_writing], None if delta is None else delta[:num_writing], step)
        return x, delta

    def logits(self, x: Tensor, delta: Tensor | None, rows: Tensor | None, operations: Operations) -> Tensor:
        """Logits of these rows, or of all, from what `hidden` gave."""
        if len(x if rows is None else rows) == 0:
            return x.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.head(self.last_states(x, delta, rows, operations)).float()

    def last_states(self, x: Tensor, delta: Tensor | None, rows: Tensor | None, operations: Operations) -> Tensor:
        """Hidden states of some rows of full depth, or of all, behind the last layer and its norm."""
        if rows is not None:
            x, delta = x[rows], None if delta is None else delta[rows]
        return self.norm.after_adding(x, delta, operations)[1]
