"""Which architectures run natively, how each differs from Llama, and how each names its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agentkv_engine.errors import UnsupportedModel

_LLAMA_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embedding": ("model.embed_tokens",),
        "norm": ("model.norm",),
        "head": ("lm_head",),
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.q_norm": ("self_attn.q_norm",),
        "attention.k_norm": ("self_attn.k_norm",),
        "attention.output": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down": ("mlp.down_proj",),
    }
)
_PHI3_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {**_LLAMA_NAMES, "attention.qkv": ("self_attn.qkv_proj",), "mlp.gate_up": ("mlp.gate_up_proj",)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How an architecture differs from Llama.

    Attributes:
        names: this engine's module names to the checkpoint's, several where this engine's matrix is theirs, one below
            the other.
        qkv_bias: queries, keys and values have a bias whatever config.json says.
        qk_norm: each head's queries and keys are normalised before they are rotated.
        head_dim: width of a head where config.json names none; None is width / heads.
        window_needs_switch: the sliding window counts only where `use_sliding_window` is true.
    """

    names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _LLAMA_NAMES)
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    window_needs_switch: bool = False


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(),
        "MistralForCausalLM": Family(),
        "Qwen2ForCausalLM": Family(qkv_bias=True, window_needs_switch=True),
        "Qwen3ForCausalLM": Family(qk_norm=True, head_dim=128, window_needs_switch=True),
        "Phi3ForCausalLM": Family(names=_PHI3_NAMES),
    }
)
"""Architectures, as config.json names them."""


def family_of(architecture: str) -> Family:
    """The family of an architecture.

    Raises:
        UnsupportedModel: one that is not in `FAMILIES`.
    """
    if architecture not in FAMILIES:
        raise UnsupportedModel(
            f"the architecture {architecture} is not supported: give a model of {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]


def checkpoint_names(architecture: str, parameter: str) -> tuple[str, ...]:
    """The checkpoint's names of the parts of one of `Decoder`'s parameters, e.g. `layers.3.mlp.gate_up.weight`.

    Raises:
        UnsupportedModel: an architecture that is not in `FAMILIES`.
    """
    module, _, kind = parameter.rpartition(".")
    prefix = ""
    if module.startswith("layers."):
        _, index, module = module.split(".", 2)
        prefix = f"model.layers.{index}."
    return tuple(f"{prefix}{name}.{kind}" for name in family_of(architecture).names[module])
