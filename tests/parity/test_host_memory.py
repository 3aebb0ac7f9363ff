"""KV that left the pool for host memory and came back: the same answers, whatever had to wait for it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.errors import OutOfMemory, RequestRefused, UnknownHandle
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.reuse import Resident
from engine_driver import FixedPlan, block_bytes_of, prompt_of, run, screened, span_of
from host_driver import AUTHOR, OTHER, Host

PROMPT = prompt_of(21, seed=3) + AUTHOR[10:90] + prompt_of(9, seed=4) + OTHER[5:50] + prompt_of(7, seed=5)


@pytest.fixture(scope="module")
def decoder(small_model):
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")


class Deferred:
    """Transfers that make no load until somebody waits for its layer."""

    def __init__(self) -> None:
        self._loads: dict[int, list[Callable[[], None]]] = {}
        self.waited: list[int] = []

    def save(self, copy: Callable[[], None], sources: Sequence[torch.Tensor]) -> None:
        copy()

    def load(self, layer: int, copy: Callable[[], None], uses: Sequence[torch.Tensor]) -> None:
        self._loads.setdefault(layer, []).append(copy)

    def wait(self, layer: int) -> None:
        for copy in self._loads.pop(layer, ()):
            self.waited.append(layer)
            copy()

    def wait_for_all(self) -> None:
        for layer in list(self._loads):
            self.wait(layer)


def reader(first: Resident, second: Resident, **options: Any):
    spans = span_of(first, 21), span_of(second, 110)
    return screened("reader", PROMPT, *spans, return_logits=True, **options)


@pytest.mark.parametrize("levels", [None, (1, 3)])
@pytest.mark.parametrize("plan", [FixedPlan({30: 3, 31: 1, 120: 3}), ReadingChange(ratio=0.2)], ids=lambda p: p.name)
def test_the_answer_is_that_of_kv_which_never_left(decoder, levels, plan) -> None:
    stayed = Host(decoder, blocks=40, host_blocks=0, levels=levels)
    expected = run(stayed.engine, reader(*stayed.keep_both(), plan=plan))["reader"]
    left = Host(decoder, blocks=14, host_blocks=20, levels=levels)
    first, second = left.keep_both()
    left.fill()
    assert left.below.keys() == {first.handle, second.handle}
    answer = run(left.engine, reader(first, second, plan=plan))["reader"]
    assert answer.sources is not None
    assert expected.sources is not None
    assert left.came_up == [first, second]
    assert torch.equal(answer.logits, expected.logits)
    assert answer.sources.restored == 80 + 45
    assert expected.sources.restored == 0
    assert answer.sources.fallbacks == ()


def test_layers_wait_for_their_own_loads_and_for_all_of_them(decoder, monkeypatch) -> None:
    transfers = Deferred()
    stayed = Host(decoder, blocks=40, host_blocks=0)
    expected = run(stayed.engine, reader(*stayed.keep_both(), plan=ReadingChange(ratio=0.2)))["reader"]
    monkeypatch.setattr("agentkv_engine.runner.model_runner.choose_transfers", lambda _device: transfers)
    left = Host(decoder, blocks=14, host_blocks=20)
    kept = left.keep_both()
    left.fill()
    left.engine.add(reader(*kept, plan=ReadingChange(ratio=0.2)))
    answers = run(left.engine)
    assert transfers.waited == [0, 1, 2]
    assert torch.equal(answers["reader"].logits, expected.logits)


def test_a_pool_that_changes_hands_before_a_load_is_awaited_is_not_harmed(decoder, monkeypatch) -> None:
    """The reader is aborted, and its blocks are written by another prompt, before any layer has waited."""
    transfers = Deferred()
    other = screened("other", prompt_of(200, seed=7), return_logits=True)
    expected = run(Host(decoder, blocks=14, host_blocks=0).engine, other)["other"]
    monkeypatch.setattr("agentkv_engine.runner.model_runner.choose_transfers", lambda _device: transfers)
    left = Host(decoder, blocks=14, host_blocks=20)
    first, second = left.keep_both()
    left.fill()
    for restored in left.engine.restore([left.below[first.handle], left.below[second.handle]]):
        left.engine.release(restored.handle)
    assert torch.equal(run(left.engine, other)["other"].logits, expected.logits)


def test_without_room_nothing_comes_back_and_the_prompt_is_prefilled(decoder) -> None:
    left = Host(decoder, blocks=14, host_blocks=20)
    kept = left.keep_both()
    left.fill()
    long = reader(*kept).token_ids + prompt_of(14 * 16 - len(PROMPT) - 1, seed=6)
    spans = span_of(kept[0], 21), span_of(kept[1], 110)
    answer = run(left.engine, screened("reader", long, *spans))["reader"]
    assert answer.error is None
    assert answer.sources is not None
    assert dict(answer.sources.fallbacks) == {"no_room": 1}
    assert answer.sources.computed == len(long)


def test_host_memory_has_an_end(decoder) -> None:
    left = Host(decoder, blocks=14, host_blocks=6)  # the first takes 5
    first, _ = left.keep_both()
    left.fill()
    assert list(left.below) == [first.handle]
    assert left.below[first.handle].num_bytes == 5 * block_bytes_of(decoder)
    left.engine.check_host(list(left.below.values()))
    left.engine.discard(left.below.pop(first.handle))
    left.engine.check_host([])
    with pytest.raises(UnknownHandle):
        left.engine.offload(first.handle)


def test_kv_that_is_lost_is_not_copied(decoder) -> None:
    left = Host(decoder, blocks=14, host_blocks=20)
    left.keep_both()
    left.engine._residents.drop_all()
    assert left.below == {}


def test_more_host_memory_than_there_is_is_a_typed_error(decoder) -> None:
    with pytest.raises(OutOfMemory, match="--host-kv-memory"):
        Host(decoder, blocks=14, host_blocks=1 << 36)
    with pytest.raises(RequestRefused, match="holds no block"):
        Engine(decoder, EngineConfig(kv_memory=1 << 22, host_kv_memory=1))
    with pytest.raises(ValueError, match="host_kv_memory"):
        EngineConfig(host_kv_memory=-1)
