"""Changes to logits before a token is chosen: bias, penalties, tokens that may not come.

Shapes: B sequences of the batch, V vocabulary, W words of 32 tokens. Logits are changed in place.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.sampling.state import SamplingState


def apply_bias(logits_BV: Tensor, states: Sequence[SamplingState]) -> None:
    """Add each sequence's `logit_bias`."""
    rows = [row for row, state in enumerate(states) for _ in state.params.logit_bias]
    tokens = [token for state in states for token in state.params.logit_bias]
    values = [value for state in states for value in state.params.logit_bias.values()]
    if rows:
        logits_BV[_index(rows, logits_BV), _index(tokens, logits_BV)] += logits_BV.new_tensor(values)


def apply_penalties(logits_BV: Tensor, states: Sequence[SamplingState]) -> None:
    """Repetition penalty over prompt and output, then frequency and presence penalty over the output."""
    for row, state in enumerate(states):
        params = state.params
        if not params.has_penalties:
            continue
        tokens = np.fromiter(state.output_counts.keys(), np.int64, len(state.output_counts))
        if params.repetition_penalty != 1:
            seen = _index(np.union1d(state.prompt_ids, tokens), logits_BV)
            logits = logits_BV[row, seen]
            penalty = params.repetition_penalty
            logits_BV[row, seen] = torch.where(logits > 0, logits / penalty, logits * penalty)
        if len(tokens) and (params.frequency_penalty or params.presence_penalty):
            counts = np.fromiter(state.output_counts.values(), np.float32, len(tokens))
            penalties = params.frequency_penalty * counts + params.presence_penalty
            logits_BV[row, _index(tokens, logits_BV)] -= torch.from_numpy(penalties).to(logits_BV.device)


def ban_stop_tokens(logits_BV: Tensor, states: Sequence[SamplingState]) -> None:
    """Where fewer than `min_tokens` are generated, no stop token may come."""
    rows = [row for row, state in enumerate(states) if state.must_go_on for _ in state.params.stop_token_ids]
    tokens = [token for state in states if state.must_go_on for token in state.params.stop_token_ids]
    if rows:
        logits_BV[_index(rows, logits_BV), _index(tokens, logits_BV)] = float("-inf")


def apply_bitmask(logits_BV: Tensor, rows: Sequence[int], bitmask_BW: Tensor) -> None:
    """Only tokens whose bit is set may come in these rows; the mask has one row for each."""
    words = bitmask_BW.to(logits_BV.device, non_blocking=True)
    bits = words.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=words.device)
    banned_BV = (bits & 1).flatten(1)[:, : logits_BV.shape[1]] == 0
    index = _index(rows, logits_BV)
    logits_BV[index] = logits_BV[index].masked_fill_(banned_BV, float("-inf"))


def _index(values: Sequence[int] | np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64).to(like.device, non_blocking=True)
