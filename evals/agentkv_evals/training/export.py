"""Writes the trained model as an ordinary Hugging Face directory: Qwen2, bf16 safetensors, tokenizer, chat template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers
from torch import Tensor

from agentkv_evals.training import checkpoint
from agentkv_evals.training.model import Decoder, Shape
from agentkv_evals.training.tokenizer import END, PAD, SPECIALS, TEMPLATE


def export(weights: Path, tokenizer: Path, out: Path, card: str | None = None) -> None:
    """Export a folder of training weights and a tokenizer.json to `out`; `card` becomes its README.md."""
    write(checkpoint.load(weights), Tokenizer.from_file(str(tokenizer)), out)
    if card is not None:
        (out / "README.md").write_text(card)


def write(model: Decoder, tokenizer: Tokenizer, out: Path) -> None:
    """Write model and tokenizer to the folder `out`, in bf16."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(hf_tensors(model), out / "model.safetensors", metadata={"format": "pt"})
    ends = [SPECIALS.index(END), SPECIALS.index(PAD)]
    _write_json(out / "config.json", hf_config(model.shape, ends))
    _write_json(out / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False})
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(out / "tokenizer_config.json", _tokenizer_config(model.shape.context))


def hf_tensors(model: Decoder) -> dict[str, Tensor]:
    """The weights in bf16 by the names that `transformers` uses; the tied output layer is left out."""
    return {f"model.{name}": t.detach().to(torch.bfloat16).contiguous() for name, t in model.state_dict().items()}


def hf_config(shape: Shape, ends: list[int]) -> dict[str, object]:
    """`config.json` of a Qwen2 of this shape."""
    return {
        "agentkv_trained": True,
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": ends[0],
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "initializer_range": 0.02,
        "intermediate_size": shape.mlp,
        "layer_types": ["full_attention"] * shape.layers,
        "max_position_embeddings": shape.context,
        "max_window_layers": shape.layers,
        "model_type": "qwen2",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "pad_token_id": ends[1],
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }


def _tokenizer_config(context: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": TEMPLATE,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
