"""Sums over turns, and figures as people read them."""

import pytest

from agentkv.api import ReuseUsage, Usage
from agentkv_evals.comparison.fidelity import Fidelity
from agentkv_evals.comparison.show import num_bytes, percent, share, small, times
from agentkv_evals.comparison.tally import Measured, Spread, Tally, TokenTotals


def measured(turn: int, ttft_ratio: float, **reuse: int) -> Measured:
    sources = ReuseUsage(full_row_layers=40, misses={"too_short": 1, f"turn_{turn}": 2}, **reuse)
    usage = Usage(prompt_tokens=10, completion_tokens=3, reuse=sources, ttft=0.1)
    fidelity = Fidelity(positions=4, mismatched=turn, kl_sum=1.0)
    return Measured(agent="a", turn=turn, usage=usage, ttft_ratio=ttft_ratio, fidelity=fidelity)


def test_turns_add_up() -> None:
    tally = Tally.of(
        [
            measured(1, 2.0, prefix=1, reused=2, repaired=3, computed=4, row_layers=20),
            measured(2, 4.0, prefix=4, reused=3, repaired=2, computed=1, row_layers=10),
        ]
    )
    assert tally.turns == 2
    assert tally.tokens == TokenTotals(prompt=20, prefix=5, reused=5, repaired=5, computed=5)
    assert (tally.row_layers, tally.full_row_layers) == (30, 80)
    assert tally.ttft_ratio == Spread(median=3.0, p90=pytest.approx(3.8))
    assert tally.row_layer_ratio == Spread(median=3.0, p90=pytest.approx(3.8))
    assert (tally.fidelity.positions, tally.fidelity.mismatched) == (8, 3)
    assert tally.misses == {"too_short": 2, "turn_1": 2, "turn_2": 2}


def test_nothing_has_no_spread() -> None:
    tally = Tally.of([])
    assert (tally.turns, tally.ttft_ratio, tally.row_layer_ratio) == (0, None, None)
    assert Spread.of([7.0]) == Spread(median=7.0, p90=7.0)


def test_shown_figures_do_not_flatter() -> None:
    assert percent(1.0) == "100.00%"
    assert percent(0.99999) == "<100%"
    assert (share(1, 8), share(0, 0)) == ("12.5%", "-")
    assert (times(2.346), times(Spread(median=1.5, p90=9.0)), times(None)) == ("2.35x", "1.50x", "-")
    assert (small(0.0), small(0.25), small(3e-8)) == ("0", "0.2500", "3.0e-08")
    assert [num_bytes(value) for value in (12, 2048, 3 * 2**20, 5 * 2**30)] == ["12 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
