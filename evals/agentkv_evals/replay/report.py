"""A replay's results as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from agentkv.api import Reuse
from agentkv_evals.comparison.tally import Measured, Tally
from agentkv_evals.replay.replay import Played


def tally(played: Iterable[Played], mode: Reuse) -> Tally:
    """What the turns of a mode come to."""
    return Tally.of(turn for each in played for turn in each.measured[mode])


def to_json(played: Sequence[Played], modes: Sequence[Reuse]) -> dict[str, Any]:
    """`totals` by mode and `traces`, each with the same figures by mode."""
    return {
        "totals": {str(mode): _figures(played, mode) for mode in modes},
        "traces": [
            {"id": each.trace_id, "modes": {str(mode): _figures([each], mode) for mode in modes}} for each in played
        ],
    }


def _figures(played: Sequence[Played], mode: Reuse) -> dict[str, Any]:
    sums = tally(played, mode)
    return {
        "turns": sums.turns,
        "skipped_turns": sum(each.skipped for each in played),
        "tokens": asdict(sums.tokens),
        "row_layers": sums.row_layers,
        "full_row_layers": sums.full_row_layers,
        "row_layer_ratio": asdict(sums.row_layer_ratio) if sums.row_layer_ratio else None,
        "ttft_ratio": asdict(sums.ttft_ratio) if sums.ttft_ratio else None,
        "positions": sums.fidelity.positions,
        "agreement": sums.fidelity.agreement,
        "mean_kl": sums.fidelity.mean_kl,
        "mismatched_turns": [
            _mismatch(each.trace_id, turn)
            for each in played
            for turn in each.measured[mode]
            if turn.fidelity.mismatched
        ],
        "misses": sums.misses,
    }


def _mismatch(trace_id: str, turn: Measured) -> dict[str, Any]:
    """A turn in which the best token is another one than full prefill's, and whether only where two are as good."""
    return {
        "trace": trace_id,
        "turn": turn.turn,
        "agent": turn.agent,
        "positions": turn.fidelity.mismatched,
        "ties": turn.fidelity.ties,
        "largest_gap": turn.fidelity.largest_gap,
        "only_ties": turn.fidelity.mismatched == turn.fidelity.ties,
    }
