"""Chooses the next tokens of a batch, in one go and with one transfer.

Shapes: B sequences of the batch, V vocabulary, R rows whose next token is known.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agentkv_engine.errors import ConstraintFailed
from agentkv_engine.sampling.adjust import apply_bias, apply_bitmask, apply_penalties, ban_stop_tokens
from agentkv_engine.sampling.draw import apply_filters, apply_temperature, choose
from agentkv_engine.sampling.result import Sampled, TokenLogprobs
from agentkv_engine.sampling.state import SamplingState

Sample = Sampled | ConstraintFailed

MOST_SCORED_ROWS = 128
"""Rows whose log-probabilities over the whole vocabulary are held at once where known tokens are scored."""


@torch.inference_mode()
def sample(logits_BV: Tensor, states: Sequence[SamplingState]) -> list[Sample]:
    """The next token of each sequence; a constraint that fails is the answer of its sequence alone.

    Args:
        logits_BV: float32; not changed.
        states: one a row; moved on by the token.
    """
    if all(state.is_plain for state in states):
        return [Sampled(token) for token in _best(logits_BV).tolist()]
    failed: dict[int, ConstraintFailed] = {}
    tokens_B = _choose(_adjusted(logits_BV, states, failed), states)
    logprobs = _logprobs(logits_BV, tokens_B, [state.num_logprobs for state in states])
    samples: list[Sample] = []
    for row, (state, token, told) in enumerate(zip(states, tokens_B.tolist(), logprobs, strict=True)):
        if row not in failed:
            try:
                state.take(token)
            except Exception as error:
                failed[row] = constraint_failure(error)
        samples.append(failed.get(row) or Sampled(token, told))
    return samples


@torch.inference_mode()
def score(logits_RV: Tensor, token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprobs, ...]:
    """Log-probabilities of known tokens, each from its row of logits, with the `num_top` most likely."""
    tokens_R = torch.as_tensor(token_ids, device=logits_RV.device)
    parts = zip(logits_RV.split(MOST_SCORED_ROWS), tokens_R.split(MOST_SCORED_ROWS), strict=True)
    told = (logprobs for logits, tokens in parts for logprobs in _logprobs(logits, tokens, [num_top] * len(tokens)))
    return tuple(logprobs for logprobs in told if logprobs is not None)


def _adjusted(logits_BV: Tensor, states: Sequence[SamplingState], failed: dict[int, ConstraintFailed]) -> Tensor:
    """Logits after bias, penalties, and what may not come; failures of constraints go into `failed`."""
    if not any(s.constraint or s.must_go_on or s.params.logit_bias or s.params.has_penalties for s in states):
        return logits_BV
    logits_BV = logits_BV.clone()
    apply_bias(logits_BV, states)
    apply_penalties(logits_BV, states)
    ban_stop_tokens(logits_BV, states)
    constrained = [row for row, state in enumerate(states) if state.constraint is not None]
    if constrained:
        bitmask_BW = torch.zeros(len(constrained), -(-logits_BV.shape[1] // 32), dtype=torch.int32)
        for number, row in enumerate(constrained):
            if (failure := fill_bitmask(states[row], bitmask_BW, number)) is not None:
                failed[row] = failure
        apply_bitmask(logits_BV, constrained, bitmask_BW)
    return logits_BV


def fill_bitmask(state: SamplingState, bitmask_BW: Tensor, row: int) -> ConstraintFailed | None:
    """Ask a sequence's constraint which tokens may come (see `TokenConstraint.fill_bitmask`). Where it fails the row is
    thrown away later, and must not disturb its batch: it then allows all."""
    assert state.constraint is not None
    failure = None
    try:
        state.constraint.fill_bitmask(bitmask_BW, row)
        if not bool(bitmask_BW[row].any()):
            failure = ConstraintFailed("the constraint allows no token: mend the grammar, or allow a stop token")
    except Exception as error:
        failure = constraint_failure(error)
    if failure is not None:
        bitmask_BW[row] = -1
    return failure


def _choose(logits_BV: Tensor, states: Sequence[SamplingState]) -> Tensor:
    drawn = [row for row, state in enumerate(states) if not state.params.is_greedy]
    if not drawn:
        return _best(logits_BV)
    everyone = len(drawn) == len(states)
    rows = torch.tensor(drawn, device=logits_BV.device)
    params = [states[row].params for row in drawn]
    logits_DV = apply_temperature(logits_BV if everyone else logits_BV[rows], params)
    if any(p.has_filters for p in params):
        logits_DV = apply_filters(logits_DV, params)
    chosen_D = choose(logits_DV, [states[row].draw() for row in drawn])
    return chosen_D if everyone else _best(logits_BV).index_copy_(0, rows, chosen_D)


def _best(logits_BV: Tensor) -> Tensor:
    """The best token of each row [B], the first among equals; on CPU numpy is ten times as fast as torch."""
    return torch.from_numpy(logits_BV.numpy().argmax(-1)) if logits_BV.is_cpu else logits_BV.argmax(-1)


def _logprobs(logits_BV: Tensor, tokens_B: Tensor, num_top: Sequence[int | None]) -> list[TokenLogprobs | None]:
    """For the rows that ask: the token's log-probability and the most likely ones."""
    told: list[TokenLogprobs | None] = [None] * len(num_top)
    asked = [(row, num) for row, num in enumerate(num_top) if num is not None]
    if not asked:
        return told
    rows = torch.tensor([row for row, _ in asked], device=logits_BV.device)
    logprobs_AV = logits_BV[rows].log_softmax(-1)
    own_A1 = logprobs_AV.gather(1, tokens_B[rows].unsqueeze(1))
    top = logprobs_AV.topk(min(max(num for _, num in asked), logits_BV.shape[1]))
    own, tokens = own_A1.squeeze(1).tolist(), tokens_B[rows].tolist()
    best, best_ids = top.values.tolist(), top.indices.tolist()
    for number, (row, num) in enumerate(asked):
        pairs = tuple(zip(best_ids[number][:num], best[number][:num], strict=True))
        told[row] = TokenLogprobs(tokens[number], own[number], pairs)
    return told


def constraint_failure(error: Exception) -> ConstraintFailed:
    """What is told of a constraint that raised."""
    failure = ConstraintFailed(f"the constraint failed ({type(error).__name__}: {error}): mend it, or leave it out")
    failure.__cause__ = error
    return failure
