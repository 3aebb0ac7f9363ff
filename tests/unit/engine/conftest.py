"""A decoder for the engine's tests."""

import pytest
import torch

from agentkv_engine.model.checkpoint import load_decoder


@pytest.fixture
def decoder(small_model):
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")
