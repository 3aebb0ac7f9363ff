"""On CUDA the engine runs on Triton's kernels, answers as it does on torch's attention, and its host never waits."""

import numpy as np
import pytest
import torch

from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.attention.sdpa import SdpaBackend
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.model_config import RopeConfig
from agentkv_engine.model.rope import RotaryEmbedding
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from engine_driver import Answer, FixedPlan, keep, prompt_of, run, span_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
pytest.importorskip("triton")


def answers(directory, dtype: torch.dtype) -> dict[str, Answer]:
    """A screened prefill beside a full one and decodes, in mixed steps."""
    engine = Engine.from_directory(directory, EngineConfig(device="cuda", dtype=dtype, max_rows_per_step=300))
    author = prompt_of(400, seed=1)
    resident = keep(engine, author, 20, 390)
    prompt = prompt_of(33, seed=2) + author[20:390] + prompt_of(20, seed=3)
    sampling = SamplingParams(max_tokens=8)
    reader = Request(
        request_id="reader",
        token_ids=prompt,
        sampling=sampling,
        mode=ReuseMode.SCREENED,
        spans=(span_of(resident, 33),),
        selector=FixedPlan(dict.fromkeys(range(40, 200, 3), 3)),
        return_logits=True,
    )
    others = [
        Request(request_id=f"other {length}", token_ids=prompt_of(length, seed=length), sampling=sampling)
        for length in (3, 290)
    ]
    return run(engine, reader, *others)


@pytest.mark.parametrize("family", ["llama-llama3", "llama-yarn", "qwen2", "llama-head-dim"])
def test_engine_answers_alike_on_both_back_ends(small_model, family: str, monkeypatch) -> None:
    kernels = answers(small_model(family), torch.float32)
    monkeypatch.setattr(
        "agentkv_engine.runner.model_runner.choose_backend",
        lambda config, rope, dtype, device: SdpaBackend(rope, device),
    )
    oracle = answers(small_model(family), torch.float32)
    assert {name: answer.token_ids for name, answer in kernels.items()} == {
        name: answer.token_ids for name, answer in oracle.items()
    }
    assert (kernels["reader"].logits - oracle["reader"].logits).abs().max() < 1e-3


def sequence(length: int, num_rows: int) -> SequenceRows:
    return SequenceRows(
        rows=np.arange(num_rows),
        positions=np.linspace(0, length - 1, num_rows).astype(np.int64),
        key_slots=np.random.default_rng(0).permutation(length),
        key_positions=np.arange(length),
        key_offsets=np.arange(length) // 100 * 5,  # some in every length: without any, queries are not turned
    )


def test_the_host_never_waits_and_lengths_are_not_compiled_in() -> None:
    from agentkv_engine.attention import triton_kernels
    from agentkv_engine.attention.triton_rows import TritonRows

    rope = RotaryEmbedding(RopeConfig(rope_type="default", theta=1e4, parameters={}), 64).cuda()
    backend = TritonRows(rope, num_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.bfloat16, device="cuda")
    pool = KVPool(num_layers=1, num_blocks=256, num_kv_heads=2, head_dim=64, dtype=torch.bfloat16, device="cuda")

    def attend(length: int) -> None:
        prepared = backend.prepare([sequence(length, 40)])
        backend.attend(torch.zeros(40, 4, 64, dtype=torch.bfloat16, device="cuda"), 0, pool, prepared)

    def num_compiled() -> int:
        caches = (triton_kernels.attend_rows.device_caches, triton_kernels.combine_splits.device_caches)
        return sum(len(cache[torch.cuda.current_device()][0]) for cache in caches)

    attend(3000)
    compiled = num_compiled()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for length in (101, 777, 1024, 3001, 4096):
            attend(length)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert num_compiled() == compiled
