"""Agreement and KL of two answers: by hand, by parts, and where they must be exactly nothing."""

import math

import pytest
import torch

from agentkv_evals.comparison.fidelity import TIE, Fidelity, compare


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_kl_and_agreement_by_hand() -> None:
    reference = logits_of([0.5, 0.25, 0.25], [0.1, 0.8, 0.1])
    other = logits_of([0.25, 0.5, 0.25], [0.1, 0.8, 0.1]) + 7.0  # a shift of all logits says nothing
    result = compare([reference], [other])
    assert (result.positions, result.mismatched, result.ties) == (2, 1, 0)
    assert result.kl_sum == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert result.agreement == 0.5
    assert result.mean_kl == pytest.approx(result.kl_sum / 2)
    assert result.largest_gap == pytest.approx(math.log(2), rel=1e-5)


def test_where_chunks_are_cut_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, other = torch.randn(2, 700, 40, generator=generator)
    whole = compare([reference], [other])
    parts = compare(reference.split(123), other.split([1, 255, 300, 144]))
    assert (parts.positions, parts.mismatched, parts.ties) == (whole.positions, whole.mismatched, whole.ties)
    assert parts.kl_sum == pytest.approx(whole.kl_sum, rel=1e-6)
    by_hand = torch.nn.functional.kl_div(
        other.double().log_softmax(-1), reference.double().log_softmax(-1), reduction="sum", log_target=True
    )
    assert whole.kl_sum == pytest.approx(float(by_hand), rel=1e-5)


def test_the_same_logits_are_exactly_no_divergence() -> None:
    logits = torch.randn(300, 50, generator=torch.Generator().manual_seed(1))
    assert compare([logits], [logits.clone()]) == Fidelity(positions=300)


def test_answers_of_different_length_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of the same reply"):
        compare([torch.zeros(300, 4)], [torch.zeros(257, 4)])
    with pytest.raises(ValueError, match="shorter"):
        compare([torch.zeros(300, 4)], [torch.zeros(256, 4)])


@pytest.mark.parametrize(("gap", "ties"), [(TIE / 2, 1), (TIE * 10, 0)])
def test_a_mismatch_between_two_best_logits_as_good_as_equal_is_a_tie(gap: float, ties: int) -> None:
    result = compare([torch.tensor([[gap, 0.0, -5.0]])], [torch.tensor([[0.0, gap, -5.0]])])
    assert (result.mismatched, result.ties) == (1, ties)


def test_parts_add_up_and_nothing_is_perfect() -> None:
    a = Fidelity(positions=3, mismatched=1, ties=1, largest_gap=0.5, kl_sum=0.25)
    b = Fidelity(positions=1, mismatched=1, ties=0, largest_gap=2.0, kl_sum=0.5)
    assert a + b == Fidelity(positions=4, mismatched=2, ties=1, largest_gap=2.0, kl_sum=0.75)
    assert (Fidelity().agreement, Fidelity().mean_kl) == (1.0, 0.0)
    assert compare([], []) == Fidelity()
