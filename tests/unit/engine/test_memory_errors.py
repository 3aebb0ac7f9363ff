"""Too little memory, at the start and in a step, and GPUs that lack bfloat16: typed errors, and the engine goes on."""

import contextlib

import pytest
import torch

from agentkv.api import ChatMessage, ChatRequest
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError, EngineRestarting
from agentkv.service import Service
from agentkv_engine import placement
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import DeviceUnavailable, OutOfMemory, RunnerLost
from agentkv_engine.memory_errors import is_out_of_memory
from agentkv_engine.request import Request, SamplingParams
from engine_driver import Answer, keep, prompt_of, run, steps

PROMPT = prompt_of(40, seed=1)


def request(name: str) -> Request:
    return Request(request_id=name, token_ids=PROMPT, sampling=SamplingParams(max_tokens=4), tenant=name)


def out_of_memory_once(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    submit = engine._runner.submit

    def fail(*_arguments: object) -> None:
        monkeypatch.setattr(engine._runner, "submit", submit)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80 GiB.")

    monkeypatch.setattr(engine._runner, "submit", fail)


def test_a_pool_larger_than_memory_is_a_typed_error(small_model) -> None:
    with pytest.raises(OutOfMemory, match=r"for the KV pool .*lower --kv-memory"):
        Engine.from_directory(small_model("qwen2"), EngineConfig(kv_memory=1 << 60))
    with pytest.raises(ConfigError, match="lower --kv-memory"):
        Service.open(small_model("qwen2"), ServiceConfig(kv_memory=1 << 60))


def test_a_step_without_memory_ends_what_had_begun_and_the_rest_goes_on(small_model, monkeypatch) -> None:
    engine = Engine.from_directory(small_model("qwen2"), EngineConfig(kv_memory=1 << 22, max_sequences=2))
    expected = run(engine, request("alone"))["alone"].token_ids
    resident = keep(engine, prompt_of(50, seed=2), 3, 40)
    engine.release_finished()
    answers: dict[str, Answer] = {}
    for name in ("first", "second", "third"):
        engine.add(request(name))
    stepping = steps(engine, answers)
    next(stepping)
    out_of_memory_once(monkeypatch, engine)
    for _ in stepping:
        pass
    for name in ("first", "second"):
        assert isinstance(answers[name].error, OutOfMemory)
        assert "lower --kv-memory or --max-rows-per-step" in str(answers[name].error)
        assert "Tried to allocate 2.00 GiB" in str(answers[name].error)
    assert answers["third"].token_ids == expected
    assert engine.export(resident.handle).token_ids == resident.token_ids
    engine.release_finished()
    assert engine.memory().pinned == 0


def test_other_faults_of_a_step_are_not_taken_for_it(small_model, monkeypatch) -> None:
    engine = Engine.from_directory(small_model("qwen2"), EngineConfig(kv_memory=1 << 22))
    engine.add(request("any"))

    def fail(*_arguments: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(engine._runner, "submit", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        engine.step()


def test_a_chat_learns_of_it_and_the_service_goes_on(small_model, monkeypatch) -> None:
    chat = ChatRequest(messages=(ChatMessage(role="user", content="What did they find?"),), max_tokens=3)
    with Service.open(small_model("qwen2"), ServiceConfig(kv_memory=1 << 22)) as service:
        out_of_memory_once(monkeypatch, service._engine)
        with pytest.raises(EngineRestarting, match="ask again"):
            list(service.submit(chat))
        assert list(service.submit(chat))[-1].finish_reason == "length"


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
    ],
)
def test_all_who_find_no_memory_are_understood(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RunnerLost(f"the pipeline was lost ({words})"))


def test_a_gpu_without_bfloat16_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.torch, "empty", lambda *_sizes, **_options: None)
    monkeypatch.setattr(placement.torch.cuda, "device", lambda _device: contextlib.nullcontext())
    monkeypatch.setattr(placement.torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(placement.torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(placement.torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    with pytest.raises(DeviceUnavailable, match=r"Tesla T4 \(compute capability 7.5\) has no bfloat16.*float16"):
        placement.check_device(EngineConfig(device="cuda"))
    placement.check_device(EngineConfig(device="cuda", dtype=torch.float16))
