"""Faults that peers were seen with, planted here: each must be caught by a check that passes without it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from agentkv_engine.attention.sdpa import SdpaBackend
from agentkv_engine.cache.key_table import KeyTable
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.rope import RotaryEmbedding
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from dense_oracle import DenseOracle
from engine_driver import FixedPlan, keep, prompt_of, run, span_of


@pytest.fixture
def error_of_repair(small_model) -> Callable[[], float]:
    """Largest deviation of a repaired prefill's logits from the dense oracle's; every third reused row is repaired."""
    decoder = load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")

    def measure() -> float:
        engine, oracle = Engine(decoder, EngineConfig()), DenseOracle(decoder)
        author = prompt_of(90, seed=1)
        resident = keep(engine, author, 20, 84)
        reader = prompt_of(33, seed=2) + author[20:84] + prompt_of(9, seed=3)
        full = decoder.config.num_layers
        depths = {p: full for p in range(33, 97) if p % 3 == 0}
        request = Request(
            request_id="a",
            token_ids=reader,
            sampling=SamplingParams(max_tokens=1),
            mode=ReuseMode.SCREENED,
            spans=(span_of(resident, 33),),
            selector=FixedPlan(depths),
            return_logits=True,
        )
        logits = run(engine, request)["a"].logits
        _, kv, _ = oracle.run(author)
        expected, _, _ = oracle.run(
            reader, [depths.get(p, 0) if 33 <= p < 97 else full for p in range(106)], [(33, kv[20:84])]
        )
        return float((logits[-1] - expected[-1]).abs().max())

    return measure


def test_without_a_fault_the_check_passes(error_of_repair) -> None:
    assert error_of_repair() < 1e-4


def test_a_bottom_right_mask_is_caught(error_of_repair, monkeypatch) -> None:
    """CacheBlend's and LMCache's fault: row numbers, not positions, decide what a repaired row sees."""

    def bottom_right(self: SdpaBackend, sequence) -> torch.Tensor:
        rows, keys = len(sequence.positions), len(sequence.key_positions)
        return torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)

    monkeypatch.setattr(SdpaBackend, "_mask", bottom_right)
    assert error_of_repair() > 1e-2


def test_a_dropped_offset_is_caught(error_of_repair, monkeypatch) -> None:
    """Keys read where they lie, but as if they had been computed at the reader's positions."""
    by_offsets = RotaryEmbedding.by_offsets
    monkeypatch.setattr(RotaryEmbedding, "by_offsets", lambda self, offsets_N: by_offsets(self, 0 * offsets_N))
    assert error_of_repair() > 1e-2


def test_a_write_to_a_shared_slot_is_caught(error_of_repair, monkeypatch) -> None:
    """A repaired row that writes where its author's key lies, under the eyes of everybody else who reads it."""
    from agentkv_engine.scheduler.scheduler import Scheduler

    assign = Scheduler._assign_slots

    def onto_shared(self: Scheduler, seq, rows) -> bool:
        if not assign(self, seq, rows):
            return False
        residence = seq.held
        for span in residence.view.spans:
            inside = rows.positions[(rows.positions >= span.start) & (rows.positions < span.end)]
            shared = self._admission._residents.keys_for(span).slots_KN[0][inside - span.start]
            residence.own_P[inside] = shared
        return True

    monkeypatch.setattr(Scheduler, "_assign_slots", onto_shared)
    with pytest.raises(AssertionError, match="write to shared slots"):
        error_of_repair()


def test_a_key_table_never_hands_out_positions_without_a_key() -> None:
    table = KeyTable(num_levels=1, capacity=8)
    table.write(np.array([0, 1, 5]), np.array([1, 1, 1]), np.array([3, 4, 9]))
    positions, slots, offsets = table.readable(0, 8)
    assert positions.tolist() == [0, 1, 5]
    assert slots.tolist() == [3, 4, 9]
    assert offsets.tolist() == [0, 0, 0]
