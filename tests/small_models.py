"""Small random-weights checkpoints of every family and RoPE type, as `transformers` writes them.

    directory = write_small_model(tmp_path, "qwen2")

Tests take them from the fixture `small_model`, which writes each once. `FAMILIES` lists the names. Widths are small,
but matrices are wide enough (see `agentkv_evals.random_model`) for a wrong key, position or mask to show in the logits.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from agentkv_evals.random_model import CHATML, draw_weights, train_tokenizer, write_json, write_tokenizer

CONTEXT_LENGTH = 8192
VOCABULARY_SIZE = 512
STD = 0.17

PARAGRAPH = """\
The committee met at nine in the morning to hear what the three researchers had found in the reports of the harbour
office. The first of them had read the tide tables from 1912 to 1948, and she said that the water had risen by 17
centimetres; the second had counted 2,306 ships; the third, who had been asked to look for errors, had found none that
mattered. "Then what shall we write?" asked the chair. "That the sea is rising, that trade is falling, and that one does
not follow from the other," said the critic, who had heard all three. The writer wrote it down, word for word, and read
it back to them: the reports, the critique, and the answer. {"name": "harbour", "years": [1912, 1948]}
"""

# Llama 3's own, without tools and dates: it names bos_token, which the tokenizer does not add by itself here.
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one small checkpoint differs from the others.

    Attributes:
        config: class of its configuration.
        options: configuration fields over the common ones.
        rope: `rope_parameters`, as transformers 5 names them.
        old_rope_key: write the RoPE settings as `rope_theta` and `rope_scaling`, as checkpoints on the Hub have them.
    """

    config: type[PreTrainedConfig]
    options: dict[str, Any] = field(default_factory=dict)
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0})
    old_rope_key: bool = False


# Original lengths are short against the context length, so that scaling changes most frequencies, as in real ones.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 1024,
    "short_factor": [1.0 + n / 16 for n in range(8)],
    "long_factor": [1.0 + n for n in range(8)],
}

FAMILIES: dict[str, Family] = {
    "llama": Family(config=LlamaConfig),
    "llama-tied": Family(config=LlamaConfig, options={"tie_word_embeddings": True}),
    "llama-llama3": Family(config=LlamaConfig, rope=LLAMA3_ROPE),
    "llama-llama3-old-key": Family(config=LlamaConfig, rope=LLAMA3_ROPE, old_rope_key=True),
    "llama-yarn": Family(config=LlamaConfig, rope=YARN_ROPE),
    "llama-head-dim": Family(config=LlamaConfig, options={"head_dim": 32}),
    "llama2": Family(config=LlamaConfig, options={"num_key_value_heads": 4}, rope=LINEAR_ROPE),
    "llama-biases": Family(config=LlamaConfig, options={"attention_bias": True, "mlp_bias": True}),
    "mistral": Family(config=MistralConfig, options={"head_dim": 32, "sliding_window": CONTEXT_LENGTH}),
    "phi3-longrope": Family(config=Phi3Config, options={"original_max_position_embeddings": 1024}, rope=LONG_ROPE),
    "qwen2": Family(config=Qwen2Config, options={"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "qwen2-multi-head": Family(config=Qwen2Config, options={"num_key_value_heads": 4}),
    "qwen2-yarn-old-key": Family(config=Qwen2Config, rope=YARN_ROPE, old_rope_key=True),
    "qwen3": Family(config=Qwen3Config, options={"head_dim": 32, "tie_word_embeddings": True}),
}


def write_small_model(directory: Path, family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write the family's checkpoint into `directory` and return it. The same seed, the same bytes."""
    shape = FAMILIES[family]
    directory.mkdir(parents=True, exist_ok=True)
    chatml = shape.config in (Qwen2Config, Qwen3Config)
    tokenizer = train_tokenizer([PARAGRAPH], VOCABULARY_SIZE, CHATML_TOKENS if chatml else LLAMA3_TOKENS)
    end_of_text, end_of_turn = ("<|endoftext|>", "<|im_end|>") if chatml else ("<|end_of_text|>", "<|eot_id|>")
    start_of_text = None if chatml else "<|begin_of_text|>"
    write_tokenizer(
        directory,
        tokenizer,
        chat_template=CHATML if chatml else LLAMA3_TEMPLATE,
        end_of_text=end_of_text,
        end_of_turn=end_of_turn,
        context_length=CONTEXT_LENGTH,
        start_of_text=start_of_text,
    )
    ends = [tokenizer.token_to_id(end_of_turn), tokenizer.token_to_id(end_of_text)]
    bos_token_id = tokenizer.token_to_id(start_of_text) if start_of_text else None
    model = AutoModelForCausalLM.from_config(_config(shape, tokenizer, bos_token_id, ends[0]))
    draw_weights(model, seed=seed, std=STD)
    _widen_normalised_queries(model)
    model.generation_config = GenerationConfig(bos_token_id=bos_token_id, eos_token_id=ends, pad_token_id=ends[1])
    model.to(dtype).save_pretrained(directory)
    if shape.old_rope_key:
        _use_old_rope_key(directory / "config.json")
    return directory


@torch.no_grad()
def _widen_normalised_queries(model: PreTrainedModel) -> None:
    """Where queries and keys are normalised, the norms' weights alone decide how sharp attention is."""
    for name, parameter in model.named_parameters():
        if "q_norm" in name:
            parameter.mul_(3)


def _config(
    shape: Family, tokenizer: Tokenizer, bos_token_id: int | None, eos_token_id: int | None
) -> PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": False,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": None,
    }
    return shape.config(**common | shape.options, rope_parameters=dict(shape.rope))


def _use_old_rope_key(path: Path) -> None:
    """Rewrite `rope_parameters` as transformers 4 had it: a top-level `rope_theta` and the rest in `rope_scaling`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    scaling = content.pop("rope_parameters")
    content["rope_theta"] = scaling.pop("rope_theta")
    content["rope_scaling"] = scaling
    write_json(path, content)
