"""From logits to a drawn token: temperature, top-k, top-p, min-p, and the inverse of the cumulated probabilities.

Filters are thresholds on the logits, so that the outcome does not depend on how a sort orders equals.

Shapes: B sequences of the batch, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agentkv_engine.sampling.params import SamplingParams

NUM_LIKELY = 1024
"""Most likely tokens that top-p looks at first: a full sort of a large vocabulary costs more than all the rest."""


def apply_temperature(logits_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Logits over temperature, the best one at 0."""
    temperatures_B1 = logits_BV.new_tensor([[p.temperature] for p in params])
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperatures_B1


def apply_filters(logits_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """-inf where top-k, then top-p, then min-p leave a token out. Logits are scaled by temperature, their best is 0."""
    if any(0 < p.top_k < logits_BV.shape[1] for p in params):
        logits_BV = _top_k(logits_BV, [min(p.top_k or logits_BV.shape[1], logits_BV.shape[1]) for p in params])
    if any(p.top_p < 1 for p in params):
        logits_BV = _top_p(logits_BV, logits_BV.new_tensor([[p.top_p] for p in params]))
    if any(p.min_p > 0 for p in params):
        least_B1 = logits_BV.new_tensor([[p.min_p] for p in params]).log()
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    return logits_BV


def choose(logits_BV: Tensor, numbers: Sequence[float]) -> Tensor:
    """Tokens [B] where the cumulated probabilities, in order of the vocabulary, pass each row's number in [0, 1)."""
    cumulated_BV = logits_BV.softmax(-1).cumsum(-1, dtype=torch.float64)
    total_B1 = cumulated_BV[:, -1:]
    wanted_B1 = cumulated_BV.new_tensor(numbers).unsqueeze(1) * total_B1
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))  # a product may round up to the total
    wanted_B1 = torch.minimum(wanted_B1, below_B1)
    return torch.searchsorted(cumulated_BV, wanted_B1, right=True).squeeze(1)


def _top_k(logits_BV: Tensor, counts: Sequence[int]) -> Tensor:
    limited = [count for count in counts if count < logits_BV.shape[1]]
    best_BK = logits_BV.topk(max(limited)).values
    last_B1 = torch.tensor([[min(count, max(limited)) - 1] for count in counts], device=logits_BV.device)
    least_B1 = best_BK.gather(1, last_B1)
    for row, count in enumerate(counts):
        if count == logits_BV.shape[1]:
            least_B1[row] = float("-inf")
    return logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))


def _top_p(logits_BV: Tensor, top_p_B1: Tensor) -> Tensor:
    """A token stays while those before it, best first, have less than top_p together."""
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    for count in (min(NUM_LIKELY, logits_BV.shape[1]), logits_BV.shape[1]):
        best_BK = logits_BV.topk(count).values
        probabilities_BK = (best_BK - total_B1).exp()
        before_BK = probabilities_BK.cumsum(-1) - probabilities_BK
        num_kept_B1 = (before_BK < top_p_B1).sum(-1, keepdim=True)
        if count == logits_BV.shape[1] or bool((num_kept_B1 < count).all()):
            least_B1 = best_BK.gather(1, (num_kept_B1 - 1).clamp_min(0))  # float32 rounds a tiny top_p to 0
            least_B1 = least_B1.masked_fill(top_p_B1 == 1, float("-inf"))
            return logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    raise AssertionError("the whole vocabulary has been looked at")
