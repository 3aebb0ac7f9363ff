"""The shape of a model, read from a Hugging Face directory's config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentkv_engine.errors import CheckpointError
from agentkv_engine.model.registry import family_of
from agentkv_engine.model.support import read_json, refuse_quantised, refuse_unsupported

DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: its base, and how its frequencies are stretched to longer contexts.

    Attributes:
        rope_type: `default`, `linear`, `llama3`, `yarn` or `longrope`.
        theta: base of the wavelengths.
        parameters: the scaling's own numbers, under their names in config.json, with
            `original_max_position_embeddings` and `max_position_embeddings` filled in.
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
        context_length: most positions it is run with: what it was made for, or fewer where fewer were asked for.
        qk_norm: each head's queries and keys are normalised before they are rotated.
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
    qk_norm: bool = False

    @property
    def flops_per_row_layer(self) -> int:
        """Floating-point operations of one row in one layer's linears; attention comes on top."""
        heads = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return 2 * self.hidden_size * (heads + 3 * self.intermediate_size)

    @classmethod
    def from_directory(cls, directory: Path, *, context_length: int | None = None) -> "ModelConfig":
        """Read config.json.

        Args:
            directory: of a Hugging Face checkpoint; its weights are not looked at.
            context_length: most positions wanted; None takes what the model was made for, which is also the most.

        Raises:
            CheckpointError: no readable config.json there, or a size is missing or wrong.
            UnsupportedModel: another architecture or activation, a sliding window below the context length,
                quantised weights.
        """
        raw = read_json(directory / "config.json")
        try:
            return cls._from_raw(raw, directory, context_length)
        except KeyError as missing:
            raise CheckpointError(
                f"{directory / 'config.json'} lacks {missing}: is it a complete checkpoint?"
            ) from None
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise CheckpointError(f"{directory / 'config.json'} has a value that can't be used: {error}") from None

    @classmethod
    def _from_raw(cls, raw: dict[str, Any], directory: Path, wanted: int | None) -> "ModelConfig":
        architecture = str((raw.get("architectures") or ["(none named)"])[0])
        family = family_of(architecture)
        refuse_quantised(raw, directory)
        rope = _rope_config(raw)
        made_for = _made_for(raw, rope)
        context_length = min(wanted or made_for, made_for)
        refuse_unsupported(raw, directory, family, context_length)
        num_heads = int(raw["num_attention_heads"])
        num_kv_heads = int(raw.get("num_key_value_heads") or num_heads)
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} heads can't share {num_kv_heads} kv heads")
        attention_bias = bool(raw.get("attention_bias"))
        return cls(
            architecture=architecture,
            num_layers=int(raw["num_hidden_layers"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=int(raw.get("head_dim") or family.head_dim or raw["hidden_size"] // num_heads),
            vocab_size=int(raw["vocab_size"]),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope=rope,
            tied_embeddings=bool(raw.get("tie_word_embeddings")),
            qkv_bias=attention_bias or family.qkv_bias,
            output_bias=attention_bias and not family.qkv_bias,
            mlp_bias=bool(raw.get("mlp_bias")),
            context_length=context_length,
            qk_norm=family.qk_norm,
        )


def _rope_config(raw: dict[str, Any]) -> RopeConfig:
    """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before)."""
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    old_name = parameters.pop("type", None)
    rope_type = parameters.pop("rope_type", None) or old_name or "default"
    theta = parameters.pop("rope_theta", None) or raw.get("rope_theta") or DEFAULT_ROPE_THETA
    longest = int(raw["max_position_embeddings"])
    trained = raw.get("original_max_position_embeddings")  # Phi-3 has it at the top, where it comes first
    parameters["original_max_position_embeddings"] = int(
        trained or parameters.get("original_max_position_embeddings") or longest
    )
    parameters["max_position_embeddings"] = longest
    parameters.setdefault("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    return RopeConfig(rope_type=_ROPE_ALIASES.get(rope_type, rope_type), theta=float(theta), parameters=parameters)


_ROPE_ALIASES = {"su": "longrope"}
"""What first checkpoints called a scaling."""


def _made_for(raw: dict[str, Any], rope: RopeConfig) -> int:
    """Positions that a model can be run with.

    Qwen2.5's instructions for YaRN leave `max_position_embeddings` at the length before it is stretched.
    """
    longest = int(raw["max_position_embeddings"])
    if rope.rope_type != "yarn":
        return longest
    return max(longest, int(rope.parameters["original_max_position_embeddings"] * rope.parameters["factor"]))
