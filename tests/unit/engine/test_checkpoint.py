"""Files of a checkpoint: shards, dtypes, tied heads, what is missing or wrong, and the memory that loading takes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentkv_engine.errors import CheckpointError, MissingTensor, UnsupportedModel
from agentkv_engine.model.checkpoint import empty_decoder, load_decoder, wanted_shapes
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.model_config import ModelConfig

INDEX = "model.safetensors.index.json"
MIB = 1 << 20
MEDIUM: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1408,
    "max_position_embeddings": 4096,
    "num_attention_heads": 8,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
}

MEASURE = """
import sys
from pathlib import Path
import torch
from agentkv_engine.model.checkpoint import load_decoder

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

torch.zeros(64, 64).bfloat16().float()  # what torch allocates once
for dtype in (torch.bfloat16, torch.float32):
    before, anonymous = status("VmRSS"), status("RssAnon")
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
    decoder = load_decoder(Path(sys.argv[1]), dtype=dtype, device="cpu")
    print(status("VmHWM") - before, status("RssAnon") - anonymous, sum(p.nbytes for p in decoder.parameters()))
    del decoder
assert "sympy" not in sys.modules, "something slow was imported"
"""


def write_checkpoint(directory: Path, raw: dict[str, Any], *, dtype: torch.dtype, shards: int) -> Path:
    """A checkpoint of random weights, in shards with an index."""
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    shapes = wanted_shapes(empty_decoder(ModelConfig.from_directory(directory)))
    generator, weight_map = torch.Generator().manual_seed(0), {}
    for shard in range(shards):
        names = list(shapes)[shard::shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors = {name: torch.empty(shapes[name]).normal_(generator=generator).to(dtype) for name in names}
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(names, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(directory, dtype=dtype, device="cpu")


def copy(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The checkpoint with its tensors changed."""
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    return target


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_loading_takes_the_weights_and_one_layer(tmp_path: Path) -> None:
    """Resident memory, file pages included."""
    write_checkpoint(tmp_path, MEDIUM, dtype=torch.bfloat16, shards=3)
    code = [sys.executable, "-c", MEASURE, str(tmp_path)]
    lines = subprocess.run(code, check=True, capture_output=True, text=True, timeout=120).stdout.splitlines()
    as_stored, converted = (tuple(map(int, line.split())) for line in lines)
    largest = MEDIUM["vocab_size"] * MEDIUM["hidden_size"] * 2  # the largest piece in the file: the embedding
    slack = 6 * MIB

    peak, kept, weights = as_stored
    assert kept < 0.6 * weights  # queries, keys, values; gates, ups: this engine has them in larger matrices
    assert peak < weights + largest + slack

    peak, kept, wide_weights = converted
    assert wide_weights == 2 * weights
    assert wide_weights - slack < kept < wide_weights + slack
    assert peak < wide_weights + largest + slack < wide_weights + weights


def test_shards_a_single_file_and_mistrals_second_copy_give_the_same(
    small_model: Callable[[str], Path], tmp_path: Path
) -> None:
    single = small_model("qwen3")
    tensors = load_file(single / "model.safetensors")
    (tmp_path / "config.json").write_bytes((single / "config.json").read_bytes())
    names = sorted(tensors)
    for part, file in enumerate(("a.safetensors", "b.safetensors")):
        save_file({name: tensors[name] for name in names[part::2]}, tmp_path / file)
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, tmp_path / "consolidated.safetensors")
    expected = load(single).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(tmp_path).state_dict().items())
    index = {"weight_map": {name: f"{'ab'[rank % 2]}.safetensors" for rank, name in enumerate(names)}}
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(tmp_path).state_dict().items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors of its model\.safetensors\.index\.json"):
        load(tmp_path)
    (tmp_path / INDEX).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load(tmp_path)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_are_run_in_the_dtype_that_is_asked_for(
    stored: torch.dtype, small_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = small_model("llama-tied")
    copy(source, tmp_path, lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    decoder, exact = load(tmp_path), load(source)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    assert decoder.head.weight is decoder.embedding.weight
    assert torch.equal(decoder.layers[0].mlp.gate_up.weight, exact.layers[0].mlp.gate_up.weight.to(stored).float())
    assert load(tmp_path, torch.bfloat16).layers[0].attention.qkv.weight.dtype is torch.bfloat16


def test_a_missing_tensor_and_a_wrong_shape_are_named(small_model: Callable[[str], Path], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    source = small_model("llama")
    copy(source, tmp_path, lambda tensors: {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(MissingTensor, match=f"no tensor {name}"):
        load(tmp_path)
    copy(source, tmp_path, lambda tensors: tensors | {name: torch.zeros(95, 64)})
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[95, 64\], config.json asks for \[96, 64\]"):
        load(tmp_path)


def test_quantised_tensors_are_refused_whatever_config_json_says(
    small_model: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    copy(small_model("llama"), tmp_path, lambda tensors: tensors | {name: tensors[name].to(torch.float8_e4m3fn)})
    with pytest.raises(UnsupportedModel, match=f"quantised weights .{name} is F8_E4M3.*--quantization int8"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "has no \\*.safetensors file: convert"),
        ("pytorch_model.bin", r"file \(it has pytorch_model\.bin\): convert"),
        ("model-Q4_K_M.gguf", r"file \(it has model-Q4_K_M\.gguf\): convert"),
        ("model.safetensors", r"model\.safetensors is not a readable safetensors file"),
    ],
)
def test_files_that_can_not_be_read(
    file: str | None, message: str, small_model: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((small_model("llama") / "config.json").read_bytes())
    if file:
        (tmp_path / file).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
