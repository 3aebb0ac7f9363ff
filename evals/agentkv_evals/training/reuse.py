"""Careless KV reuse with `transformers` alone: every message's KV from its author's own context, keys only turned.

Nothing is repaired: this is what reuse costs when nobody screens it. Shapes of a cache layer: [1, heads, tokens, H].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, DynamicLayer, PreTrainedModel

from agentkv_evals.training.encode import Encoder
from agentkv_evals.worlds.item import Item, Message


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a reader's prompt: fresh ids, or the ids of the message of turn `turn`."""

    ids: list[int]
    turn: int | None = None


def pieces(item: Item, encoder: Encoder) -> list[Piece]:
    """The reader's prompt with its generation prompt, cut at the edges of the messages' contents."""
    prompt, _ = encoder.item(item)
    cut: list[Piece] = []
    done, cursor = 0, len(encoder.prompt([Message(role="system", content=item.reader_system)]))
    for index, turn in enumerate(item.turns):
        header = encoder.prompt([Message(role=item.message_role, name=turn.author, content="")])[:-2]
        content = encoder.encode(turn.content)
        start = cursor + len(header)
        cut += [Piece(prompt[done:start]), Piece(content, index)]
        done = start + len(content)
        cursor = done + 2
    return [*cut, Piece(prompt[done:])]


def turn_keys(keys: Tensor, offset: int, theta: float) -> Tensor:
    """Keys rotated by `offset` positions, in fp32 and rotate-half layout."""
    half = keys.shape[-1] // 2
    angles = offset * theta ** -(torch.arange(half, dtype=torch.float32) / half)
    cos, sin = torch.cat([angles.cos()] * 2), torch.cat([angles.sin()] * 2)
    a, b = keys.float().chunk(2, dim=-1)
    return (keys.float() * cos + torch.cat([-b, a], dim=-1) * sin).to(keys.dtype)


class Careless:
    """Grades items with full prefill and with careless reuse."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder) -> None:
        self.model, self.encoder = model, encoder
        self.theta = float(model.config.rope_parameters["rope_theta"])

    @torch.no_grad()
    def full(self, item: Item) -> bool:
        """Whether greedy decoding after full prefill gives the right reply."""
        prompt, reply = self.encoder.item(item)
        logits = self.model(torch.tensor([prompt + reply[:-1]])).logits[0, len(prompt) - 1 :]
        return logits.argmax(-1).tolist() == reply

    @torch.no_grad()
    def reused(self, item: Item) -> bool:
        """Whether it still does with every message's KV taken from its author's own context."""
        _, reply = self.encoder.item(item)
        cache = DynamicCache()
        parts = pieces(item, self.encoder)
        for piece in parts[:-1]:
            if piece.turn is None:
                self.model(torch.tensor([piece.ids]), past_key_values=cache)
            else:
                self.place(cache, item, piece)
        last = parts[-1].ids
        logits = self.model(torch.tensor([last + reply[:-1]]), past_key_values=cache).logits[0, len(last) - 1 :]
        return logits.argmax(-1).tolist() == reply

    def place(self, cache: DynamicCache, item: Item, piece: Piece) -> None:
        """Append the author's KV of one message to the reader's cache."""
        assert piece.turn is not None
        context = self.encoder.prompt(item.author_messages(piece.turn)) + self.encoder.generation_prompt()
        own = DynamicCache()
        self.model(torch.tensor([context + piece.ids]), past_key_values=own)
        offset = cache.get_seq_length() - len(context)
        for index, layer in enumerate(own.layers):
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            keys, values = layer.keys[:, :, len(context) :], layer.values[:, :, len(context) :]
            cache.update(turn_keys(keys, offset, self.theta), values, index)
