"""Which architectures run natively, and how each names its tensors."""

from collections.abc import Mapping

from agentkv_engine.errors import UnsupportedModel

_LLAMA_NAMES: Mapping[str, str] = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}

FAMILIES: Mapping[str, Mapping[str, str]] = {
    "LlamaForCausalLM": _LLAMA_NAMES,
    "Qwen2ForCausalLM": _LLAMA_NAMES,
}
"""Architecture (config.json) to name map: this engine's module names to the checkpoint's."""


def checkpoint_name(architecture: str, parameter: str) -> str:
    """The checkpoint's name of one of `Decoder`'s parameters, e.g. `layers.3.mlp.up.weight`.

    Raises:
        UnsupportedModel: an architecture that is not in `FAMILIES`.
    """
    if architecture not in FAMILIES:
        raise UnsupportedModel(f"architecture {architecture!r} is not supported; supported are {', '.join(FAMILIES)}")
    names = FAMILIES[architecture]
    module, _, kind = parameter.rpartition(".")
    if module.startswith("layers."):
        _, index, part = module.split(".", 2)
        return f"model.layers.{index}.{names[part]}.{kind}"
    return f"{names[module]}.{kind}"
