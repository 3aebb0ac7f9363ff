"""Host memory beside a GPU: what comes back on the side stream is what left, and is not read before it is there."""

import pytest
import torch

from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv_engine.model.checkpoint import load_decoder
from engine_driver import keep, prompt_of, run, screened, span_of
from host_driver import Host

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTH = 3000


def test_what_left_comes_back_while_the_model_runs(small_model) -> None:
    decoder = load_decoder(small_model("qwen2"), dtype=torch.float32, device="cuda")
    author = prompt_of(LENGTH + 50, seed=1)
    prompt = prompt_of(21, seed=2) + author[40 : LENGTH + 40] + prompt_of(30, seed=3)
    host = Host(decoder, blocks=260, host_blocks=200, device="cuda", max_rows_per_step=4096, context_length=8192)
    resident = keep(host.engine, author, 40, LENGTH + 40, tenant="a")
    before = host.engine.export(resident.handle)
    host.engine.release_finished()

    def answer(name: str) -> torch.Tensor:
        request = screened(
            name, prompt, span_of(resident, 21), plan=ReadingChange(ratio=0.1), tenant=name, return_logits=True
        )
        result = run(host.engine, request)[name]
        assert result.error is None
        assert result.sources is not None
        assert result.sources.restored == (0 if name == "first" else LENGTH)
        return result.logits

    expected = answer("first")
    for number in range(8):
        host.fill()
        assert resident.handle in host.below
        got = answer(f"again {number}")
        assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
        after = host.engine.export(resident.handle)
        assert torch.equal(after.k_LNKD, before.k_LNKD)
        assert torch.equal(after.v_LNKD, before.v_LNKD)
        for layer, traces in before.traces.items():
            pairs = zip(traces.tensors, after.traces[layer].tensors, strict=True)
            assert all(torch.equal(old, new) for old, new in pairs)
    host.engine.check_host(list(host.below.values()))
