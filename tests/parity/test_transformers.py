"""The engine gives what `transformers` gives on the same weights: logits and greedy tokens, for each family."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from engine_driver import prompt_of, run
from small_models import FAMILIES

NUM_GREEDY = 64
SHORT_LONGROPE = 1024
"""Positions up to which `transformers` takes the small longrope model's frequencies for short contexts."""


def reference(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_match_transformers(small_model: Callable[[str], Path], family: str) -> None:
    directory = small_model(family)
    short = SHORT_LONGROPE if family == "phi3-longrope" else None
    engine = Engine.from_directory(directory, EngineConfig(max_rows_per_step=37, context_length=short))
    prompt = prompt_of(150, seed=1)
    sampling = SamplingParams(max_tokens=NUM_GREEDY)
    request = Request(request_id="a", token_ids=prompt, sampling=sampling, mode=ReuseMode.OFF, return_logits=True)
    ours = run(engine, request)["a"]
    with torch.inference_mode():
        tokens = torch.tensor([prompt + ours.token_ids])
        logits = reference(directory)(tokens).logits[0, len(prompt) - 1 : -1]
    assert (ours.logits - logits).abs().max() < 1e-4
    assert ours.token_ids == tuple(logits.argmax(-1).tolist())


@pytest.mark.parametrize("family", ["llama-llama3", "llama-yarn", "phi3-longrope", "qwen2"])
def test_logits_match_at_4096_tokens(small_model: Callable[[str], Path], family: str) -> None:
    directory = small_model(family)
    engine = Engine.from_directory(directory, EngineConfig(max_rows_per_step=1500))
    prompt = prompt_of(4096, seed=2)
    request = Request(request_id="a", token_ids=prompt, sampling=SamplingParams(max_tokens=1), return_logits=True)
    ours = run(engine, request)["a"]
    with torch.inference_mode():
        logits = reference(directory)(torch.tensor([prompt])).logits[0, -1:]
    assert (ours.logits - logits).abs().max() < 1e-4
