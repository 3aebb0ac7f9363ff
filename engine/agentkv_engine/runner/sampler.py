"""Chooses the next token from logits."""

import torch
from torch import Tensor

from agentkv_engine.request import SamplingParams

GREEDY_BELOW = 1e-5
"""Smaller temperatures are greedy: float32 can't divide by them."""


def sample(logits_V: Tensor, sampling: SamplingParams, generator: torch.Generator) -> int:
    """The next token: the most likely one below `GREEDY_BELOW`, else drawn from softmax(logits / temperature).

    Args:
        logits_V: float32 [vocabulary].
        sampling: the request's parameters.
        generator: the request's own, so that a batch draws what the request draws alone.
    """
    if sampling.temperature < GREEDY_BELOW:
        return int(logits_V.argmax())
    probabilities = ((logits_V - logits_V.max()) / sampling.temperature).softmax(-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
