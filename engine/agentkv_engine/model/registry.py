"""Which architectures run natively, and how each names its tensors."""

from collections.abc import Mapping

from agentkv_engine.errors import UnsupportedModel

_LLAMA_NAMES: Mapping[str, str | tuple[str, ...]] = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": "mlp.down_proj",
}

FAMILIES: Mapping[str, Mapping[str, str | tuple[str, ...]]] = {
    "LlamaForCausalLM": _LLAMA_NAMES,
    "Qwen2ForCausalLM": _LLAMA_NAMES,
}
"""Architecture (config.json) to name map: this engine's module names to the checkpoint's, several where this
engine's matrix is theirs, one below the other."""


def checkpoint_names(architecture: str, parameter: str) -> tuple[str, ...]:
    """The checkpoint's names of the parts of one of `Decoder`'s parameters, e.g. `layers.3.mlp.gate_up.weight`.

    Raises:
        UnsupportedModel: an architecture that is not in `FAMILIES`.
    """
    if architecture not in FAMILIES:
        raise UnsupportedModel(f"architecture {architecture!r} is not supported; supported are {', '.join(FAMILIES)}")
    module, _, kind = parameter.rpartition(".")
    prefix = ""
    if module.startswith("layers."):
        _, index, module = module.split(".", 2)
        prefix = f"model.layers.{index}."
    theirs = FAMILIES[architecture][module]
    return tuple(f"{prefix}{name}.{kind}" for name in ((theirs,) if isinstance(theirs, str) else theirs))
