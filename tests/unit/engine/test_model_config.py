"""config.json of well-known checkpoints: shapes as transformers builds them, or a refusal that says why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentkv_engine.errors import CheckpointError, UnsupportedModel
from agentkv_engine.model.checkpoint import empty_decoder, load_decoder, wanted_shapes
from agentkv_engine.model.model_config import ModelConfig
from hub_configs import QUANTISED, QWEN25_YARN, REFUSED, SUPPORTED


def write_config(directory: Path, raw: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return directory


def load(directory: Path) -> object:
    return load_decoder(directory, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_known_checkpoint_has_the_tensors_that_transformers_names(name: str, tmp_path: Path) -> None:
    raw = SUPPORTED[name]
    assert ModelConfig.from_directory(write_config(tmp_path, raw)).num_layers == raw["num_hidden_layers"]
    write_config(tmp_path, raw | {"num_hidden_layers": 2})
    config = ModelConfig.from_directory(tmp_path)
    ours = wanted_shapes(empty_decoder(config))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    expected = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    if config.tied_embeddings:
        del expected["lm_head.weight"]
    assert ours == expected
    assert config.context_length == raw["max_position_embeddings"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, tmp_path: Path) -> None:
    raw, message = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=message):
        load(write_config(tmp_path, raw))


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_refused_before_a_file_is_opened(name: str, tmp_path: Path) -> None:
    entry, message = QUANTISED[name]
    (tmp_path / "model.safetensors").mkdir()  # opening it would be another error
    with pytest.raises(UnsupportedModel, match=rf"{message}: use the unquantised checkpoint.*--quantization int8"):
        load(write_config(tmp_path, SUPPORTED["Qwen2.5-0.5B-Instruct"] | {"quantization_config": entry}))


@pytest.mark.parametrize(
    ("file", "method"),
    [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")],
)
def test_quantisation_that_only_a_side_file_names(file: str, method: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}", encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=f"quantised by {method} .it has {file}."):
        load(write_config(tmp_path, SUPPORTED["Llama-2-7b-chat-hf"]))


def test_a_sliding_window_is_no_matter_below_it(tmp_path: Path) -> None:
    write_config(tmp_path, REFUSED["Mistral-7B-Instruct-v0.1"][0])
    assert ModelConfig.from_directory(tmp_path, context_length=4096).context_length == 4096
    sliding = SUPPORTED["Qwen2.5-0.5B-Instruct"] | {"use_sliding_window": True, "sliding_window": 512}
    assert ModelConfig.from_directory(write_config(tmp_path, sliding | {"max_window_layers": 24})).num_layers == 24
    with pytest.raises(UnsupportedModel, match="window of 512"):
        ModelConfig.from_directory(write_config(tmp_path, sliding))


def test_yarn_stretches_a_context_that_config_json_leaves_as_trained(tmp_path: Path) -> None:
    assert ModelConfig.from_directory(write_config(tmp_path, QWEN25_YARN)).context_length == 131072


def test_biases(tmp_path: Path) -> None:
    both = SUPPORTED["TinyLlama-1.1B-Chat-v1.0"] | {"attention_bias": True, "mlp_bias": True}
    llama = ModelConfig.from_directory(write_config(tmp_path, both))
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    qwen2 = ModelConfig.from_directory(write_config(tmp_path, SUPPORTED["Qwen2.5-0.5B-Instruct"]))
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias) == (True, False, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "has a value that can't be used"),
        ({"num_key_value_heads": 5}, "32 heads can't share 5 kv heads"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' rope scaling lacks 'factor'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "lacks 'factor'"),
        ({"architectures": []}, r"architecture \(none named\) is not supported"),
    ],
)
def test_broken_values_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(write_config(tmp_path, SUPPORTED["Llama-2-7b-chat-hf"] | change))


def test_a_missing_size_and_a_config_that_is_no_object(tmp_path: Path) -> None:
    raw = dict(SUPPORTED["Llama-2-7b-chat-hf"])
    del raw["vocab_size"]
    with pytest.raises(CheckpointError, match=r"config\.json lacks 'vocab_size'"):
        load(write_config(tmp_path, raw))
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        load(tmp_path)
