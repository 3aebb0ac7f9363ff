"""The engine on CUDA gives what it gives on CPU: prefill, decode, screened prefill with probe and repairs."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Observation, Probe, Reading, RepairPlan, Reread, ReuseView
from engine_driver import Answer, FixedPlan, keep, prompt_of, run, span_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def screened_answer(directory: Path, device: str, dtype: torch.dtype) -> tuple[Answer, FixedPlan]:
    engine = Engine.from_directory(directory, EngineConfig(device=device, dtype=dtype, max_rows_per_step=64))
    author = prompt_of(100, seed=1)
    resident = keep(engine, author, 20, 90)
    reader = prompt_of(33, seed=2) + author[20:90] + prompt_of(20, seed=3)
    plan = FixedPlan(dict.fromkeys(range(40, 60), 3), Probe(positions=tuple(range(100, 123)), depth=3))
    request = Request(
        request_id="reader",
        token_ids=reader,
        sampling=SamplingParams(max_tokens=12),
        mode=ReuseMode.SCREENED,
        spans=(span_of(resident, 33),),
        selector=plan,
        return_logits=True,
    )
    return run(engine, request)["reader"], plan


@pytest.mark.parametrize("family", ["llama-llama3", "llama-yarn", "qwen2"])
def test_float32_on_cuda_equals_cpu(small_model, family: str) -> None:
    here, plan_here = screened_answer(small_model(family), "cpu", torch.float32)
    there, plan_there = screened_answer(small_model(family), "cuda", torch.float32)
    assert there.token_ids == here.token_ids
    assert (there.logits.cpu() - here.logits).abs().max() < 1e-3
    seen_here, seen_there = plan_here.seen[0], plan_there.seen[0]
    assert seen_here is not None
    assert seen_there is not None
    assert (seen_there.attention_LRP.cpu() - seen_here.attention_LRP).abs().max() < 1e-4
    assert there.sources == here.sources


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(small_model, dtype: torch.dtype) -> None:
    here, _ = screened_answer(small_model("qwen2"), "cpu", torch.float32)
    there, _ = screened_answer(small_model("qwen2"), "cuda", dtype)
    scale = float(here.logits[0].abs().max())
    assert (there.logits[0].cpu() - here.logits[0]).abs().max() < 0.1 * scale


def test_seeded_sampling_repeats(small_model) -> None:
    engine = Engine.from_directory(small_model("qwen2"), EngineConfig(device="cuda", dtype=torch.float32))
    sampling = SamplingParams(max_tokens=20, temperature=1.0, seed=7)
    answers = run(engine, *(Request(request_id=n, token_ids=(5, 6, 7), sampling=sampling) for n in "ab"))
    assert answers["a"].token_ids == answers["b"].token_ids


def test_traces_tell_the_same_as_on_cpu(small_model) -> None:
    """Queries are asked again by the device's own kernels: the same rows change, by the same shares."""
    seen = []
    for device in ("cpu", "cuda"):
        config = EngineConfig(device=device, dtype=torch.float32, trace_layers=(1, 2))
        engine = Engine.from_directory(small_model("qwen2"), config)
        resident = keep(engine, prompt_of(100, seed=1), 20, 90)
        reader = prompt_of(33, seed=2) + prompt_of(100, seed=1)[20:90] + prompt_of(20, seed=3)
        rereads = [Reread(positions=range(33, 103), left_out=((5, 30),))]
        selector = Rereads(rereads)
        request = Request(
            request_id="reader",
            token_ids=reader,
            sampling=SamplingParams(max_tokens=1),
            mode=ReuseMode.SCREENED,
            spans=(span_of(resident, 33),),
            selector=selector,
        )
        assert run(engine, request)["reader"].error is None
        seen.append([(r.since_then_R.cpu(), r.by_left_out_R.cpu()) for r in selector.readings])
    for here, there in zip(*seen, strict=True):
        for ours, theirs in zip(here, there, strict=True):
            assert ours.max() > 0.05
            assert torch.allclose(ours, theirs, rtol=0.02, atol=0.01)


@dataclass
class Rereads:
    """A selector that asks rows again in both traced layers, and repairs nothing."""

    rereads: list[Reread]
    readings: list[Reading] = field(default_factory=list)
    name: str = "rereads"

    def probe(self, view: ReuseView) -> Probe:
        return Probe(positions=(), depth=1)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan:
        assert observation is not None
        self.readings = [observation.reading(layer, self.rereads) for layer in observation.traced_layers]
        return RepairPlan()
