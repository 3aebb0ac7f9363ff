"""transformers' `generate` on the same shape, for the arms beside the engine's."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from agentkv_evals.bench.rates import synchronize


def transformers_model(config: Any, dtype: torch.dtype, device: str) -> Any:
    """A model of random weights and this shape."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 (slow to import, for this arm alone)

    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=config.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return LlamaForCausalLM(theirs).eval()
        finally:
            torch.set_default_dtype(before)


def decode_seconds(model: Any, batch: int, context: int, num_tokens: int, seed: int) -> list[float]:
    """The mean seconds of a token of `generate`: what `num_tokens` more of them add."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (batch, context), generator=generator).to(model.device)
    seconds = []
    for count in (2, 2, 2 + num_tokens):  # the first is dropped
        synchronize(model.device.type)
        started = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        synchronize(model.device.type)
        seconds.append(time.perf_counter() - started)
    return [(seconds[2] - seconds[1]) / num_tokens]


def prefill_seconds(model: Any, token_ids: Sequence[int]) -> float:
    """Seconds in which `generate` brings the first token of a prompt."""
    ids = torch.tensor([token_ids], device=model.device)
    synchronize(model.device.type)
    started = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
    synchronize(model.device.type)
    return time.perf_counter() - started
