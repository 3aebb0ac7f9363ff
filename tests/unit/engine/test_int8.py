"""Weights in 8 bits, and bfloat16: near full precision, in the memory that they promise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import DeviceUnavailable
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.int8 import BLOCK_WEIGHTS, FEW_ROWS, Int8Linear, quantise
from agentkv_engine.request import Request, SamplingParams
from engine_driver import prompt_of, run


def drawn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_rows_are_within_half_a_step_and_zeros_stay(dtype: torch.dtype) -> None:
    weight = torch.cat([drawn(40, 64, dtype=dtype), torch.zeros(1, 64, dtype=dtype)])
    int8, scales = quantise(weight)
    assert (int8.dtype, scales.dtype) == (torch.int8, dtype)
    steps = scales.float().unsqueeze(1)
    # A scale rounded down to bfloat16 clips the row's largest weight by up to half a step more.
    assert ((int8.float() * steps - weight.float()).abs() <= 1.01 * steps).all()
    assert ((int8.float() * steps - weight.float()).abs() <= 0.501 * steps).float().mean() > 0.98
    assert int8[-1].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 70])
def test_a_linear_gives_what_its_rounded_weight_gives(dtype: torch.dtype, rows: int) -> None:
    inputs = 512
    weight = drawn(3 * BLOCK_WEIGHTS // (2 * inputs), inputs, dtype=dtype)  # two blocks, the second smaller
    bias = torch.nn.Parameter(drawn(len(weight), dtype=dtype), requires_grad=False)
    int8, scales = quantise(weight)
    x = drawn(rows, inputs, dtype=dtype)
    ours = Int8Linear(int8, scales, bias)(x)
    exact = F.linear(x.double(), int8.double() * scales.double().unsqueeze(1), bias.double())
    assert ours.dtype is dtype
    assert (ours.double() - exact).abs().max() < exact.abs().max() * (1e-5 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize("family", ["llama-biases", "phi3-longrope", "qwen3"])
def test_a_model_in_8_bits_is_near_the_model(small_model: Callable[[str], Path], family: str) -> None:
    """Also with biases, fused matrices, a tied head, and the norms of queries, which stay as they are."""
    prompt, reply = prompt_of(60, seed=1), prompt_of(20, seed=2)
    logits = {}
    for quantization in (None, "int8"):
        config = EngineConfig(dtype=torch.float32, quantization=quantization, context_length=1024)
        engine = Engine.from_directory(small_model(family), config)
        request = Request(request_id="a", token_ids=prompt, forced_output=reply, return_logits=True)
        logits[quantization] = run(engine, request)["a"].logits
    error = (logits["int8"] - logits[None]).std() / logits[None].std()
    assert 0 < error < 0.1
    assert torch.cosine_similarity(logits["int8"], logits[None]).min() > 0.98


def test_weights_take_a_quarter_of_float32_and_a_tied_head_none(small_model: Callable[[str], Path]) -> None:
    decoders = [
        load_decoder(small_model("llama-tied"), dtype=torch.float32, device="cpu", quantization=quantization)
        for quantization in (None, "int8")
    ]
    plain, int8 = (sum({t.data_ptr(): t.nbytes for t in (*d.parameters(), *d.buffers())}.values()) for d in decoders)
    assert int8 < 0.32 * plain
    assert decoders[1].head.weight is decoders[1].embedding.weight


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_bfloat16_on_cpu_is_near_float32(small_model: Callable[[str], Path], quantization: str | None) -> None:
    prompt, reply = prompt_of(60, seed=3), prompt_of(20, seed=4)
    logits = {}
    for dtype, kind in ((torch.float32, None), (torch.bfloat16, quantization)):
        engine = Engine.from_directory(small_model("qwen2"), EngineConfig(dtype=dtype, quantization=kind))
        request = Request(request_id="a", token_ids=prompt, forced_output=reply, return_logits=True)
        logits[dtype] = run(engine, request)["a"].logits
    assert torch.cosine_similarity(logits[torch.bfloat16], logits[torch.float32]).min() > 0.97


def test_int8_runs_on_cpu_only(small_model: Callable[[str], Path]) -> None:
    with pytest.raises(DeviceUnavailable, match="int8 weights run on cpu only, not on 'meta'"):
        Engine.from_directory(small_model("qwen2"), EngineConfig(device="meta", quantization="int8"))


def test_a_sampled_reply_runs_in_8_bits(small_model: Callable[[str], Path]) -> None:
    engine = Engine.from_directory(small_model("qwen3"), EngineConfig(quantization="int8"))
    sampling = SamplingParams(max_tokens=8, temperature=0.7, seed=1)
    assert len(run(engine, Request(request_id="a", token_ids=prompt_of(20, seed=5), sampling=sampling))["a"].token_ids)
