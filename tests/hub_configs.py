"""config.json of well-known checkpoints, as they are on the Hub, with what does not matter here left out."""

from typing import Any

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
_PHI3: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}

SUPPORTED: dict[str, dict[str, Any]] = {
    "Llama-2-7b-chat-hf": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rope_scaling": None,
        "torch_dtype": "float16",
        "vocab_size": 32000,
    },
    "Llama-3.1-8B-Instruct": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rope_scaling": _LLAMA3_SCALING,
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    },
    "Llama-3.2-1B-Instruct": _LLAMA
    | {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rope_scaling": _LLAMA3_SCALING | {"factor": 32.0},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "TinyLlama-1.1B-Chat-v1.0": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
    },
    "SmolLM2-135M-Instruct": _LLAMA
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "Mistral-7B-Instruct-v0.3": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32768,
    },
    "Mistral-Nemo-Instruct-2407": {
        "architectures": ["MistralForCausalLM"],
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 131072,
    },
    "Qwen2.5-0.5B-Instruct": _QWEN2
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "Qwen2.5-14B-Instruct": _QWEN2
    | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "max_position_embeddings": 32768,
        "max_window_layers": 70,
        "num_attention_heads": 40,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "sliding_window": 131072,
        "vocab_size": 152064,
    },
    "DeepSeek-R1-Distill-Qwen-1.5B": _QWEN2
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 131072,
        "max_window_layers": 21,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rope_theta": 10000,
        "sliding_window": 4096,
        "use_mrope": False,
        "vocab_size": 151936,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Phi-3-mini-128k-instruct": _PHI3
    | {
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "long_factor": [1.0 + n * 1.3 for n in range(48)],
            "short_factor": [1.0 + n / 30 for n in range(48)],
            "type": "longrope",
        },
        "sliding_window": 262144,
    },
}
"""Checkpoints that load (the numbers of Phi-3's two sets of factors are not its own)."""

QWEN25_YARN = SUPPORTED["Qwen2.5-0.5B-Instruct"] | {
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
}
"""As Qwen2.5's model card has it for long texts."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Mistral-7B-Instruct-v0.1": (
        SUPPORTED["Mistral-7B-Instruct-v0.3"] | {"sliding_window": 4096, "vocab_size": 32000},
        r"sliding window of 4096 tokens.*--context-length 4096",
    ),
    "Phi-3-mini-4k-instruct": (
        _PHI3 | {"max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
        r"sliding window of 2047 tokens.*--context-length 2047",
    ),
    "gemma-2-2b-it": (
        {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 2304},
        r"architecture Gemma2ForCausalLM is not supported: give a model of LlamaForCausalLM, .*Qwen3ForCausalLM",
    ),
    "gemma-3-4b-it": (
        {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"hidden_size": 2560}},
        r"Gemma3ForConditionalGeneration is not supported: .*MistralForCausalLM",
    ),
    "Mixtral-8x7B-Instruct-v0.1": (
        {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8},
        r"MixtralForCausalLM is not supported: .*LlamaForCausalLM",
    ),
    "DeepSeek-V3": (
        {
            "architectures": ["DeepseekV3ForCausalLM"],
            "kv_lora_rank": 512,
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        },
        r"DeepseekV3ForCausalLM is not supported: .*LlamaForCausalLM",
    ),
    "Phi-4-mini-instruct": (
        SUPPORTED["Phi-3-mini-128k-instruct"] | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True},
        r"a part of each head \(0\.75 of it\) is not supported",
    ),
    "dynamic NTK": (
        SUPPORTED["Llama-2-7b-chat-hf"] | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        r"'dynamic' \(NTK\) is not supported: its frequencies change as a chat grows",
    ),
    "another RoPE": (
        SUPPORTED["Llama-2-7b-chat-hf"] | {"rope_scaling": {"type": "spiral", "factor": 2.0}},
        r"rope type 'spiral' is not supported; known are default, linear, llama3, yarn, longrope",
    ),
    "GELU": (SUPPORTED["Llama-2-7b-chat-hf"] | {"hidden_act": "gelu"}, r"activation 'gelu': only silu"),
}
"""Checkpoints that do not, and what the error says."""

QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "GPTQ": ({"bits": 4, "group_size": 128, "quant_method": "gptq"}, r"by GPTQ \(4 bits\)"),
    "AWQ": ({"bits": 4, "quant_method": "awq", "version": "gemm", "zero_point": True}, r"by AWQ \(4 bits\)"),
    "compressed-tensors": (
        {"config_groups": {}, "format": "pack-quantized", "quant_method": "compressed-tensors"},
        r"by compressed-tensors \(pack-quantized\)",
    ),
    "bitsandbytes": (
        {"bnb_4bit_quant_type": "nf4", "load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes"},
        r"by bitsandbytes \(4 bits\)",
    ),
    "old bitsandbytes": ({"load_in_4bit": False, "load_in_8bit": True}, r"by bitsandbytes \(8 bits\)"),
    "fp8": ({"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}, r"by FP8"),
    "unnamed": ({"group_size": 64}, r"by a method that config\.json does not name"),
}
"""`quantization_config` entries, and what the error says."""
