"""Sampling against transformers' logits processors, and what a seed promises."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from agentkv_engine.errors import RequestRefused
from agentkv_engine.request import FinishReason, Request, SamplingParams
from agentkv_engine.sampling.draw import apply_filters, apply_temperature, choose
from agentkv_engine.sampling.params import check_sampling
from agentkv_engine.sampling.sampler import _adjusted, sample
from agentkv_engine.sampling.state import SamplingState
from engine_driver import engine_of, prompt_of, run

SIZE = 50
TOKENS = st.integers(0, SIZE - 1)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 7, 50, 200]),
    top_p=st.sampled_from([5e-324, 1e-6, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3]),
    presence_penalty=st.sampled_from([0.0, -1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -1.0, 0.7]),
    logit_bias=st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=4),
    min_tokens=st.sampled_from([0, 3, 9]),
    stop_token_ids=st.frozensets(TOKENS, max_size=3),
    seed=st.integers(0, 9),
)
SEQUENCES = st.lists(
    st.tuples(PARAMS, st.lists(TOKENS, min_size=1, max_size=8), st.lists(TOKENS, max_size=8)), min_size=1, max_size=5
)


def state_of(params: SamplingParams, prompt: list[int], output: list[int]) -> SamplingState:
    state = SamplingState(params, tuple(prompt))
    for token in output:
        state.take(token)
    return state


def logits_of(rows: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed))


def expected(logits_V: torch.Tensor, params: SamplingParams, prompt: list[int], output: list[int]) -> torch.Tensor:
    """The distribution that transformers' processors give; the penalties it lacks by OpenAI's formula."""
    scores = logits_V.clone()
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    ids = torch.tensor([prompt + output])
    scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores.unsqueeze(0))[0]
    for token, count in Counter(output).items():
        scores[token] -= params.frequency_penalty * count + params.presence_penalty
    warpers = LogitsProcessorList()
    if params.min_tokens and params.stop_token_ids:
        ends = torch.tensor(sorted(params.stop_token_ids))
        warpers.append(MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, ends, device="cpu"))
    if params.is_greedy:
        best = warpers(ids, scores.unsqueeze(0))[0].argmax()
        return torch.nn.functional.one_hot(best, SIZE).float()
    warpers.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(ids, scores.unsqueeze(0))[0].softmax(-1)


@settings(max_examples=150, deadline=None)
@given(sequences=SEQUENCES, seed=st.integers(0, 1 << 30))
def test_a_batch_is_distributed_as_transformers_would_each(sequences, seed: int) -> None:
    logits_BV = logits_of(len(sequences), seed)
    states = [state_of(*sequence) for sequence in sequences]
    adjusted_BV = _adjusted(logits_BV, states, {})
    for row, (params, prompt, output) in enumerate(sequences):
        if params.is_greedy:
            found = torch.nn.functional.one_hot(adjusted_BV[row].argmax(), SIZE).float()
        else:
            scaled = apply_temperature(adjusted_BV, [s.params if not s.params.is_greedy else params for s in states])
            found = apply_filters(scaled, [state.params for state in states])[row].softmax(-1)
        assert torch.allclose(found, expected(logits_BV[row], params, prompt, output), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(sequences=SEQUENCES, seed=st.integers(0, 1 << 30))
def test_a_batch_draws_what_each_draws_alone(sequences, seed: int) -> None:
    logits_BV = logits_of(len(sequences), seed)
    together = sample(logits_BV, [state_of(*sequence) for sequence in sequences])
    alone = [sample(logits_BV[[row]], [state_of(*sequence)])[0] for row, sequence in enumerate(sequences)]
    assert together == alone


def test_numbers_are_mapped_to_tokens_in_proportion() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3])
    numbers = [(n + 0.5) / 1000 for n in range(1000)]
    tokens = choose(probabilities.log().expand(1000, 5), [*numbers[1:], 1 - 2**-53])
    assert torch.bincount(tokens, minlength=5).tolist() == pytest.approx([0, 500, 0, 200, 300], abs=1)


def test_top_p_looks_beyond_the_likeliest_of_a_flat_distribution() -> None:
    logits_BV = torch.linspace(0, 1e-3, 5000).flip(0).repeat(2, 1)
    kept = apply_filters(logits_BV, [SamplingParams(top_p=0.5), SamplingParams(top_p=1e-4)]) > float("-inf")
    assert kept.sum(1).tolist() == pytest.approx([2500, 1], abs=2)


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_in_chunks_and_after_preemption(decoder) -> None:
    params = {n: SamplingParams(max_tokens=60, temperature=0.8, top_p=0.95, seed=n) for n in range(4)}
    requests = [Request(request_id=str(n), token_ids=prompt_of(40, seed=30 + n), sampling=params[n]) for n in params]
    squeezed = engine_of(decoder, 14, max_rows_per_step=16)
    together = run(squeezed, *requests)
    assert squeezed.num_preemptions > 0
    for request in requests:
        alone = run(engine_of(decoder, 100), request)[request.request_id]
        assert alone.token_ids == together[request.request_id].token_ids
    unseeded = Request(request_id="a", token_ids=requests[0].token_ids, sampling=SamplingParams(temperature=1.0))
    first, second = (run(engine_of(decoder, 100), unseeded)["a"].token_ids for _ in range(2))
    assert first != second


def test_stop_tokens_wait_for_min_tokens(decoder) -> None:
    everything = frozenset(range(0, 481, 2))
    request = Request(
        request_id="a",
        token_ids=prompt_of(20, seed=1),
        sampling=SamplingParams(min_tokens=7, stop_token_ids=everything, temperature=1.0, seed=0),
    )
    answer = run(engine_of(decoder, 100), request)["a"]
    assert answer.finish_reason is FinishReason.STOP
    assert len(answer.token_ids) >= 8
    assert not everything & set(answer.token_ids[:7])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", -2.1),
        ("frequency_penalty", float("nan")),
        ("logit_bias", {SIZE: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("min_tokens", 300),
        ("seed", 1 << 63),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestRefused, match=name) as refused:
        check_sampling(SamplingParams(**{name: value}), SIZE)
    assert refused.value.param == name
