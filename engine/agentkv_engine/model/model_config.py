"""The shape of a model, read from a Hugging Face directory's config.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentkv_engine.errors import CheckpointError, UnsupportedModel

DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: its base, and how its frequencies are stretched to longer contexts.

    Attributes:
        rope_type: `default`, `linear`, `llama3` or `yarn`.
        theta: base of the wavelengths.
        parameters: the scaling's own numbers, under their names in config.json.
    """

    rope_type: str
    theta: float
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a Llama-family decoder.

    Attributes:
        architecture: name in config.json, a key of `model.registry.FAMILIES`.
        num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size: its sizes.
        norm_eps: added to the mean square in RMSNorm.
        rope: see `RopeConfig`.
        tied_embeddings: the output head is the embedding table.
        qkv_bias, output_bias, mlp_bias: which linears have a bias.
        context_length: most positions it was made for.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    context_length: int

    @property
    def flops_per_row_layer(self) -> int:
        """Floating-point operations of one row in one layer's linears; attention comes on top."""
        heads = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return 2 * self.hidden_size * (heads + 3 * self.intermediate_size)

    @classmethod
    def from_directory(cls, directory: Path) -> "ModelConfig":
        """Read config.json.

        Raises:
            CheckpointError: no readable config.json there, or a size is missing.
            UnsupportedModel: sliding windows, quantised weights, another activation.
        """
        raw = _read_json(directory / "config.json")
        _refuse_unsupported(raw, directory)
        try:
            return cls._from_raw(raw)
        except KeyError as missing:
            raise CheckpointError(
                f"{directory / 'config.json'} lacks {missing}: is it a complete checkpoint?"
            ) from None

    @classmethod
    def _from_raw(cls, raw: dict[str, Any]) -> "ModelConfig":
        architecture = (raw.get("architectures") or ["none named"])[0]
        num_heads = raw["num_attention_heads"]
        attention_bias = bool(raw.get("attention_bias", False))
        return cls(
            architecture=architecture,
            num_layers=raw["num_hidden_layers"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_heads=num_heads,
            num_kv_heads=raw.get("num_key_value_heads") or num_heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
            vocab_size=raw["vocab_size"],
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope=_rope_config(raw),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=attention_bias or raw.get("model_type") == "qwen2",
            output_bias=attention_bias,
            mlp_bias=bool(raw.get("mlp_bias", False)),
            context_length=raw["max_position_embeddings"],
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} not found: give a Hugging Face model directory (config.json, *.safetensors, tokenizer.json)"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): download the checkpoint again") from None


def _refuse_unsupported(raw: dict[str, Any], directory: Path) -> None:
    quantisation = raw.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method", "unnamed")
        raise UnsupportedModel(f"{directory} holds {method}-quantised weights: use the unquantised checkpoint")
    if raw.get("use_sliding_window") or (raw.get("sliding_window") and raw.get("model_type") != "qwen2"):
        raise UnsupportedModel(f"{directory} uses a sliding attention window of {raw.get('sliding_window')} tokens")
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"{directory} uses the activation {activation!r}: only silu is supported")


def _rope_config(raw: dict[str, Any]) -> RopeConfig:
    """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before)."""
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rope_type = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    theta = parameters.pop("rope_theta", None) or raw.get("rope_theta") or DEFAULT_ROPE_THETA
    parameters.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    return RopeConfig(rope_type=rope_type, theta=float(theta), parameters=parameters)
