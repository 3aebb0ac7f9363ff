"""The random-weights checkpoints load in transformers, repeat, and attend to something."""

import filecmp
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from agentkv.embedded import is_trained, model_directory
from agentkv.errors import ModelError
from agentkv_evals.random_model import write_random_model
from small_models import FAMILIES, PARAGRAPH, write_small_model

CHAT = [{"role": "system", "content": "你好 🙂 12"}, {"role": "user", "name": "bob", "content": "well?"}]


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def attention_entropies(model: PreTrainedModel, token_ids: list[int]) -> list[float]:
    """Mean entropy of the second half of the rows' attention as a share of a uniform one's, per layer."""
    attentions = model(torch.tensor([token_ids]), output_attentions=True).attentions
    half = len(token_ids) // 2
    uniform = sum(math.log(n + 1) for n in range(half, len(token_ids))) / (len(token_ids) - half)
    return [float(torch.special.entr(a[0, :, half:]).sum(-1).mean()) / uniform for a in attentions]


@pytest.mark.parametrize("family", FAMILIES)
def test_small_model_loads_attends_and_round_trips(family: str, small_model: Callable[[str], Path]) -> None:
    directory = small_model(family)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    token_ids = tokenizer(PARAGRAPH).input_ids
    assert tokenizer.decode(token_ids) == PARAGRAPH
    assert "你好 🙂 12" in tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert max(attention_entropies(load(directory), token_ids)) < 0.8


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_every_loader_gives_the_same_ids(family: str, small_model: Callable[[str], Path]) -> None:
    text = "cafe\u0301 \u1100\u1161 12\r\n\n  b<|im_end|>\n"
    ids = Tokenizer.from_file(str(small_model(family) / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(small_model(family)).encode(text) == ids


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, second = write_small_model(tmp_path / "a", "qwen2"), write_small_model(tmp_path / "b", "qwen2")
    other = write_small_model(tmp_path / "c", "qwen2", seed=1)
    names = [path.name for path in first.iterdir()]
    assert filecmp.cmpfiles(first, second, names, shallow=False)[0] == names
    assert not filecmp.cmp(first / "model.safetensors", other / "model.safetensors", shallow=False)


def test_qwen2_biases_are_drawn(small_model: Callable[[str], Path]) -> None:
    biases = [parameter for name, parameter in load(small_model("qwen2")).named_parameters() if name.endswith("bias")]
    assert len(biases) == 3 * 3
    assert all(float(bias.detach().abs().mean()) > 0.05 for bias in biases)


def test_old_rope_key_gives_the_same_model(small_model: Callable[[str], Path]) -> None:
    token_ids = torch.tensor([AutoTokenizer.from_pretrained(small_model("llama")).encode(PARAGRAPH)])
    with torch.no_grad():
        new, old, plain = (
            load(small_model(f))(token_ids).logits for f in ("llama-llama3", "llama-llama3-old-key", "llama")
        )
    assert torch.equal(new, old)
    assert float((new - plain).abs().max()) > 0.1


def test_random_model(tmp_path: Path) -> None:
    write_random_model(tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 4096
    text = bytes(range(256)).decode("latin-1") + " 你好 🙂 1912\n\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("1912") == ["1", "9", "1", "2"]
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\n你好 🙂 12<|im_end|>\n<|im_start|>user name=bob\nwell?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not is_trained(tmp_path)
    assert max(attention_entropies(load(tmp_path), tokenizer(PARAGRAPH).input_ids)) < 0.5


def test_embedded_model_is_there_and_untold_models_count_as_trained(small_model: Callable[[str], Path]) -> None:
    assert isinstance(is_trained(model_directory()), bool)
    assert is_trained(small_model("llama"))


def test_is_trained_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        is_trained(tmp_path)
