"""Rotary embedding of every type: frequencies as transformers has them, and keys that can be read from elsewhere."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from agentkv_engine.errors import CheckpointError
from agentkv_engine.model.model_config import RopeConfig
from agentkv_engine.model.rope import RotaryEmbedding, inverse, rotate
from small_models import LINEAR_ROPE, LLAMA3_ROPE, LONG_ROPE, YARN_ROPE

HEAD_DIM, LONGEST = 16, 8192
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500_000.0},
    "linear": LINEAR_ROPE,
    "llama3": LLAMA3_ROPE,
    "yarn": YARN_ROPE,
    "yarn with mscale": YARN_ROPE | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, untruncated": YARN_ROPE | {"truncate": False, "attention_factor": 1.3},
    "longrope": LONG_ROPE,
    "longrope with its factor": LONG_ROPE | {"attention_factor": 1.25},
}


def embedding(parameters: dict[str, Any], context_length: int | None = None) -> RotaryEmbedding:
    rest = {key: value for key, value in parameters.items() if key not in ("rope_type", "rope_theta")}
    config = RopeConfig(
        rope_type=parameters["rope_type"],
        theta=parameters["rope_theta"],
        parameters={"max_position_embeddings": LONGEST, "original_max_position_embeddings": LONGEST} | rest,
    )
    return RotaryEmbedding(config, HEAD_DIM, context_length)


def reference(parameters: dict[str, Any], length: int | None) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        rope_parameters=dict(parameters),
    )
    if parameters["rope_type"] == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=length)


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_and_attention_factor_are_those_of_transformers(name: str) -> None:
    ours = embedding(ROPES[name])
    frequencies, factor = reference(ROPES[name], LONGEST)
    assert torch.equal(ours.inverse_frequencies, frequencies)
    assert ours.attention_factor == pytest.approx(factor, abs=1e-12)


def test_longrope_takes_its_set_of_factors_at_start_up() -> None:
    short, long = embedding(LONG_ROPE, 1024), embedding(LONG_ROPE, 1025)
    assert torch.equal(short.inverse_frequencies, reference(LONG_ROPE, 1024)[0])
    assert torch.equal(long.inverse_frequencies, reference(LONG_ROPE, 1025)[0])
    assert not torch.equal(short.inverse_frequencies, long.inverse_frequencies)
    assert short.attention_factor == long.attention_factor > 1
    with pytest.raises(CheckpointError, match="short_factor of rope has 3 numbers, and heads of width 16 need 8"):
        embedding(LONG_ROPE | {"short_factor": [1.0, 2.0, 3.0]}, 100)


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("offset", [-700, 1, 5000])
def test_a_key_can_be_read_from_any_position(name: str, offset: int) -> None:
    """<R(p) q, R(home + offset) k> = <R(-offset) R(p) q, R(home) k>, and the turned key is the key at its new place."""
    rope, generator = embedding(ROPES[name]), torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, HEAD_DIM, generator=generator) for _ in range(2))
    position, home = torch.tensor([6100]), torch.tensor([900])
    turn = rope.by_offsets(torch.tensor([offset]))
    at_home, moved = rotate(k, rope.at_positions(home)), rotate(k, rope.at_positions(home + offset))
    query = rotate(q, rope.at_positions(position))
    wanted = (query * moved).sum(-1)
    assert torch.allclose((rotate(query, inverse(turn)) * at_home).sum(-1), wanted, atol=4e-3)
    assert torch.allclose(rotate(at_home, turn), moved, atol=2e-3)
    assert not torch.allclose(at_home, moved, atol=2e-2)
