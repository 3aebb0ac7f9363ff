"""How far an arm's next-token distributions are from full prefill's, at every token of the same forced reply."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

TIE = 1e-4
"""Two best logits closer than this are a tie: fp32 sums in another order may swap them."""

_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Agreement with full prefill; sums, so that parts add up.

    Attributes:
        positions: next-token distributions compared.
        mismatched: of these, with another best token than full prefill has.
        ties: of these mismatches, where full prefill's two best logits are a tie.
        largest_gap: largest distance of full prefill's two best logits over the mismatches.
        kl_sum: sum of KL(full prefill || arm) in nats.
    """

    positions: int = 0
    mismatched: int = 0
    ties: int = 0
    largest_gap: float = 0.0
    kl_sum: float = 0.0

    def __add__(self, other: "Fidelity") -> "Fidelity":
        return Fidelity(
            positions=self.positions + other.positions,
            mismatched=self.mismatched + other.mismatched,
            ties=self.ties + other.ties,
            largest_gap=max(self.largest_gap, other.largest_gap),
            kl_sum=self.kl_sum + other.kl_sum,
        )

    @property
    def agreement(self) -> float:
        """Share of positions with full prefill's best token; 1 where there are none."""
        return 1 - self.mismatched / self.positions if self.positions else 1.0

    @property
    def mean_kl(self) -> float:
        """Mean KL divergence a position, in nats."""
        return self.kl_sum / self.positions if self.positions else 0.0


def compare(reference: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> Fidelity:
    """Compare two answers to the same forced reply.

    Args:
        reference: full prefill's logits in chunks [n_i, vocabulary].
        other: the arm's, in chunks that may be cut elsewhere.

    Raises:
        ValueError: they have not as many rows, so they are no answers to the same reply.
    """
    pairs = zip(_blocks(reference), _blocks(other), strict=True)
    return sum((_compare_rows(a, b) for a, b in pairs), start=Fidelity())


def _blocks(chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same rows in blocks of `_ROWS`, so that what is computed on the side stays small."""
    held: list[torch.Tensor] = []
    for chunk in chunks:
        for part in chunk.split(_ROWS):
            held.append(part)
            if sum(map(len, held)) >= _ROWS:
                rows = torch.cat(held)
                yield rows[:_ROWS]
                held = [rows[_ROWS:]]
    if sum(map(len, held)):
        yield torch.cat(held)


def _compare_rows(reference_NV: torch.Tensor, other_NV: torch.Tensor) -> Fidelity:
    if reference_NV.shape != other_NV.shape:
        raise ValueError(f"logits {tuple(reference_NV.shape)} and {tuple(other_NV.shape)} are not of the same reply")
    reference_NV, other_NV = reference_NV.float(), other_NV.float()
    best = reference_NV.topk(2)
    missed_N = best.indices[:, 0] != other_NV.argmax(dim=-1)
    gaps = (best.values[:, 0] - best.values[:, 1])[missed_N]
    log_p, log_q = reference_NV.log_softmax(dim=-1), other_NV.log_softmax(dim=-1)
    # Rounding may leave a sum of -1e-8 where the two are equal: no divergence is below zero.
    kl_N = (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)
    return Fidelity(
        positions=len(reference_NV),
        mismatched=int(missed_N.sum()),
        ties=int((gaps <= TIE).sum()),
        largest_gap=float(gaps.max()) if len(gaps) else 0.0,
        kl_sum=float(kl_N.double().sum()),
    )
