"""Log-probabilities: those of the logits that are returned, for sampled, forced and prompt tokens alike."""

import pytest
import torch

from agentkv_engine.errors import RequestRefused
from agentkv_engine.request import Request, ReuseMode, SamplingParams, TokenLogprobs
from agentkv_engine.sampling import sampler
from engine_driver import Answer, engine_of, keep, prompt_of, run, screened, span_of


def assert_told(told: tuple[TokenLogprobs, ...], token_ids: tuple[int, ...], logits: torch.Tensor, num: int) -> None:
    assert len(told) == len(token_ids) == len(logits)
    for row, token, logprobs in zip(logits.log_softmax(-1), token_ids, told, strict=True):
        assert logprobs.token_id == token
        assert logprobs.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(num)
        assert [token_id for token_id, _ in logprobs.top] == best.indices.tolist()
        assert [value for _, value in logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("forced", [None, tuple(range(40, 70))])
def test_log_probabilities_are_those_of_the_model(decoder, forced: tuple[int, ...] | None) -> None:
    params = SamplingParams(max_tokens=6, temperature=0.7, top_k=5, seed=1, presence_penalty=1.0)
    request = Request(
        request_id="a",
        token_ids=prompt_of(30, seed=1),
        sampling=params,
        num_logprobs=4,
        return_logits=True,
        forced_output=forced,
    )
    others = [Request(request_id=str(n), token_ids=prompt_of(9, seed=n), num_logprobs=n - 1 or None) for n in (1, 2)]
    answers = run(engine_of(decoder, 100, max_rows_per_step=16), others[0], request, others[1])
    assert_told(answers["a"].logprobs, answers["a"].token_ids, answers["a"].logits, 4)
    assert answers["1"].logprobs == ()
    assert len(answers["2"].logprobs) == len(answers["2"].token_ids)


def scored(decoder, prompt: tuple[int, ...], num_blocks: int = 100, **options) -> Answer:
    request = Request(request_id="a", token_ids=prompt, prompt_logprobs=3, sampling=SamplingParams(max_tokens=2))
    return run(engine_of(decoder, num_blocks, **options), request)["a"]


def test_a_prompt_is_scored_in_chunks(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(100, seed=1)
    whole = scored(decoder, prompt).prompt_logprobs
    assert whole is not None
    assert whole[0] is None
    continued = Request(request_id="b", token_ids=prompt[:1], forced_output=prompt[1:], return_logits=True)
    logits = run(engine_of(decoder, 100), continued)["b"].logits
    assert_told(tuple(told for told in whole if told is not None), prompt[1:], logits, 3)
    monkeypatch.setattr("agentkv_engine.scheduler.scheduler.MOST_SCORED_ROWS", 7)
    monkeypatch.setattr(sampler, "MOST_SCORED_ROWS", 7)
    chunked = scored(decoder, prompt).prompt_logprobs
    assert chunked is not None
    assert [told.logprob for told in chunked if told] == pytest.approx([t.logprob for t in whole if t], abs=1e-4)


def test_a_scored_prompt_survives_preemption_and_reads_nothing(decoder) -> None:
    author = prompt_of(60, seed=40)
    engine = engine_of(decoder, 13, max_rows_per_step=24)
    resident = keep(engine, author, 0, 48, mode=ReuseMode.OFF)
    old = Request(request_id="old", token_ids=prompt_of(60, seed=43), sampling=SamplingParams(max_tokens=110))
    young = screened("young", author, span_of(resident, 0), prompt_logprobs=0, sampling=SamplingParams(max_tokens=90))
    answer = run(engine, old, young)["young"]
    assert engine.num_preemptions > 0
    assert answer.sources is not None
    assert answer.sources.computed == 60
    alone = scored(decoder, author).prompt_logprobs
    assert answer.prompt_logprobs is not None
    assert alone is not None
    given = [told.logprob for told in answer.prompt_logprobs if told]
    assert given == pytest.approx([told.logprob for told in alone if told], abs=1e-4)


def test_what_can_not_be_told_is_refused(decoder) -> None:
    engine = engine_of(decoder, 100)
    with pytest.raises(RequestRefused, match="num_logprobs is 21"):
        engine.add(Request(request_id="a", token_ids=(1, 2), num_logprobs=21))
    with pytest.raises(RequestRefused, match="exclude each other"):
        engine.add(Request(request_id="a", token_ids=(1, 2), prompt_logprobs=0, forced_output=(1,)))
