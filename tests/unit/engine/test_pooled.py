"""Pooled hidden states: the mean that transformers gives, in any chunks, beside any company, over no reused row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import RequestRefused
from agentkv_engine.request import FinishReason, Output, Request, ReuseMode, SamplingParams
from engine_driver import engine_of, prompt_of, run


def pooled(name: str, prompt: tuple[int, ...], **options: Any) -> Request:
    return Request(request_id=name, token_ids=prompt, output=Output.POOLED_STATES, **options)


def mean_of(engine: Engine, request: Request) -> torch.Tensor:
    engine.add(request)
    outputs = [output for _ in iter(lambda: engine.has_work, False) for output in engine.step()]
    (mine,) = [output for output in outputs if output.request_id == request.request_id]
    assert mine.token_ids == ()
    assert mine.finish_reason is FinishReason.STOP
    assert mine.sources is not None
    assert mine.sources.computed == len(request.token_ids)
    assert mine.pooled is not None
    engine.release_finished()
    engine.check()
    return mine.pooled


@pytest.fixture(scope="module")
def directory(small_model) -> Path:
    return small_model("qwen2")


@pytest.mark.parametrize("rows", [7, 1024])
def test_it_is_the_mean_of_the_last_hidden_states(directory: Path, rows: int) -> None:
    engine = Engine.from_directory(directory, EngineConfig(kv_memory=1 << 22, max_rows_per_step=rows))
    reference: Any = AutoModel.from_pretrained(directory)
    prompt = prompt_of(50, seed=1)
    with torch.inference_mode():
        states = reference(torch.tensor([prompt])).last_hidden_state[0]
    torch.testing.assert_close(mean_of(engine, pooled("a", prompt)), states.mean(0), atol=1e-4, rtol=1e-4)


def test_company_changes_nothing_and_nothing_reused_is_read(directory: Path) -> None:
    engine = Engine.from_directory(directory, EngineConfig(kv_memory=1 << 22, max_rows_per_step=32))
    prompts = [prompt_of(60, seed=1), prompt_of(41, seed=2)]
    alone = [mean_of(engine, pooled("alone", prompt)) for prompt in prompts]
    run(engine, Request(request_id="chat", token_ids=prompts[0], sampling=SamplingParams(max_tokens=1)))
    again = mean_of(engine, pooled("again", prompts[0], mode=ReuseMode.EXACT))  # its prefix is indexed by now
    engine.add(Request(request_id="beside", token_ids=prompts[1], sampling=SamplingParams(max_tokens=30)))
    engine.add(pooled("b", prompts[1]))
    together = mean_of(engine, pooled("c", prompts[0]))
    for mean in (again, together):
        torch.testing.assert_close(mean, alone[0], atol=1e-5, rtol=1e-4)


def test_preemption_starts_the_mean_anew(directory: Path) -> None:
    from agentkv_engine.model.checkpoint import load_decoder

    decoder = load_decoder(directory, dtype=torch.float32, device="cpu")
    roomy, tight = engine_of(decoder, 40, max_rows_per_step=16), engine_of(decoder, 7, max_rows_per_step=16)
    prompt, other = prompt_of(60, seed=1), prompt_of(47, seed=3)
    expected = mean_of(roomy, pooled("a", prompt))
    tight.add(Request(request_id="older", token_ids=other, sampling=SamplingParams(max_tokens=50)))
    torch.testing.assert_close(mean_of(tight, pooled("a", prompt)), expected, atol=1e-5, rtol=1e-4)
    assert tight.num_preemptions > 0


@pytest.mark.parametrize("options", [{"forced_output": (1,)}, {"num_logprobs": 0}, {"return_logits": True}])
def test_tokens_are_not_to_be_had_beside_it(directory: Path, options: dict[str, Any]) -> None:
    engine = Engine.from_directory(directory, EngineConfig(kv_memory=1 << 22))
    with pytest.raises(RequestRefused, match="pooled states"):
        engine.add(pooled("a", (1, 2), **options))
