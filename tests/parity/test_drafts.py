"""A draft is only looked at: whatever is drafted, the reply is that of the repairs that came of it.

Where all of the prompt but its last token is reused, no other row has read what is repaired later, so that a watch that
repairs some rows has to give what a plan of the same rows gives.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agentkv.screening.selectors.draft_reading import DraftReading
from agentkv_engine.errors import RequestRefused, SelectorFailed
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.request import FinishReason, ReuseMode, SamplingParams
from agentkv_engine.reuse import Amendment, Draft, Observation
from dense_oracle import DenseOracle
from engine_driver import Answer, FixedDrafts, FixedPlan, FixedWatch, engine_of, keep, prompt_of, run, screened, span_of

SYSTEM = prompt_of(21, seed=41)
MESSAGE = prompt_of(60, seed=42)
PROMPT = SYSTEM + MESSAGE + prompt_of(1, seed=43)
START, END = len(SYSTEM), len(SYSTEM) + len(MESSAGE)
SOME = (START, START + 7, START + 8, END - 5, END - 1)


@pytest.fixture(params=["qwen2", "qwen3", "llama-llama3"])
def decoder(request: pytest.FixtureRequest, small_model: Callable[[str], Path]) -> Decoder:
    return load_decoder(small_model(request.param), dtype=torch.float32, device="cpu")


@pytest.fixture
def one_decoder(small_model: Callable[[str], Path]) -> Decoder:
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")


def answer_of(
    decoder: Decoder, plan: object, *, prompt=PROMPT, num_blocks: int = 40, chunk: int = 512, **options
) -> Answer:
    """The reader's answer, alone on an engine."""
    engine = engine_of(decoder, num_blocks, max_rows_per_step=chunk)
    resident = keep(engine, prompt_of(9, seed=44) + MESSAGE, 9, 9 + len(MESSAGE))
    request = screened("reader", prompt, span_of(resident, START), plan=plan, **options)
    answer = run(engine, request)["reader"]
    engine.step()
    assert engine.memory().pinned == 0
    return answer


def planned(repairs: tuple[int, ...]) -> FixedPlan:
    return FixedPlan(dict.fromkeys(repairs, 3))


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("repairs", [(), SOME, tuple(range(START, END))], ids=["none", "some", "all"])
def test_a_draft_leaves_no_trace_in_the_reply(decoder: Decoder, chunk: int, repairs: tuple[int, ...]) -> None:
    options = {"sampling": SamplingParams(max_tokens=14), "return_logits": True, "num_logprobs": 2}
    wanted = answer_of(decoder, planned(repairs), **options)
    for num_tokens in (1, 4, 30):
        given = answer_of(decoder, FixedDrafts(((num_tokens, repairs),)), chunk=chunk, **options)
        assert given.token_ids == wanted.token_ids
        torch.testing.assert_close(given.logits, wanted.logits, atol=1e-4, rtol=1e-4)
        assert [told.token_id for told in given.logprobs] == list(wanted.token_ids)
        assert given.finish_reason is wanted.finish_reason


def test_repairing_all_is_full_prefill(decoder: Decoder) -> None:
    options = {"sampling": SamplingParams(max_tokens=8)}
    full = run(engine_of(decoder, 40), replace(screened("reader", PROMPT, **options), mode=ReuseMode.OFF))["reader"]
    assert answer_of(decoder, FixedDrafts(((3, tuple(range(START, END))),)), **options).token_ids == full.token_ids


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_tokens=12, temperature=1.0, seed=5),
        SamplingParams(
            max_tokens=12, temperature=0.3, seed=6, top_p=0.9, frequency_penalty=0.5, repetition_penalty=1.2
        ),
        SamplingParams(max_tokens=12, min_tokens=9, logit_bias={7: 3.0}),
        SamplingParams(max_tokens=1),
    ],
    ids=["seeded", "penalties", "bias", "one"],
)
def test_whatever_sampling_remembers_it_remembers_of_the_reply_alone(
    one_decoder: Decoder, sampling: SamplingParams
) -> None:
    wanted = answer_of(one_decoder, planned(SOME), sampling=sampling)
    for num_tokens in (2, 7):
        given = answer_of(one_decoder, FixedDrafts(((num_tokens, SOME),)), sampling=sampling)
        assert given.token_ids == wanted.token_ids


def test_a_stop_token_ends_the_draft_and_the_reply(one_decoder: Decoder) -> None:
    tokens = answer_of(one_decoder, planned(()), sampling=SamplingParams(max_tokens=8)).token_ids
    stop = SamplingParams(max_tokens=8, stop_token_ids=(tokens[3],))
    plan = FixedDrafts(((6, ()),))
    answer = answer_of(one_decoder, plan, sampling=stop)
    assert answer.token_ids == tokens[: tokens.index(tokens[3]) + 1]
    assert answer.finish_reason is FinishReason.STOP
    assert max(plan.watches[0].saw) < len(PROMPT) + 4


@pytest.mark.parametrize("num_tokens", [1, 3, 20])
def test_a_forced_reply_is_judged_behind_the_draft(one_decoder: Decoder, num_tokens: int) -> None:
    free = answer_of(one_decoder, planned(SOME), sampling=SamplingParams(max_tokens=9)).token_ids
    for forced in (prompt_of(9, seed=45), free, (*free[:2], *prompt_of(5, seed=46))):
        options = {"forced_output": forced, "return_logits": True, "num_logprobs": 1}
        wanted = answer_of(one_decoder, planned(SOME), **options)
        given = answer_of(one_decoder, FixedDrafts(((num_tokens, SOME),)), **options)
        assert given.token_ids == forced
        torch.testing.assert_close(given.logits, wanted.logits, atol=1e-4, rtol=1e-4)
        assert [told.token_id for told in given.logprobs] == list(forced)


def test_a_draft_that_holds_is_given_out_at_once(one_decoder: Decoder) -> None:
    engine = engine_of(one_decoder, 40)
    resident = keep(engine, MESSAGE, 0, len(MESSAGE))
    options = {"plan": FixedDrafts(((5, ()),)), "sampling": SamplingParams(max_tokens=9)}
    engine.add(screened("reader", PROMPT, span_of(resident, START), **options))
    sizes = [len(output.token_ids) for _ in range(40) if engine.has_work for output in engine.step()]
    assert sizes == [6, 1, 1, 1]


def test_work_is_counted_to_the_end(one_decoder: Decoder) -> None:
    answer = answer_of(one_decoder, FixedDrafts(((4, SOME), (2, (START + 2,)))), sampling=SamplingParams(max_tokens=12))
    sources = answer.sources
    assert sources is not None
    assert (sources.reused, sources.repaired, sources.left) == (len(MESSAGE) - 6, 6, 0.25)
    assert sources.probe_row_layers == 3 * (4 + 2)
    assert sources.repair_row_layers == 3 * (len(SOME) + 5 + 1 + 3)
    assert sources.fresh_row_layers == 3 * (len(SYSTEM) + 1)


def test_rows_of_fresh_text_keep_what_they_read_before(one_decoder: Decoder) -> None:
    """A fresh row behind the span ran over stale keys: only the rows that speak run again."""
    prompt = SYSTEM + MESSAGE + prompt_of(6, seed=47)
    oracle = DenseOracle(one_decoder)
    context = prompt_of(9, seed=44)
    _, author, _ = oracle.run(context + MESSAGE)
    message = author[9:]
    depths = [3 if not START <= p < END else 0 for p in range(len(prompt))]
    _, stale, _ = oracle.run(prompt, depths, [(START, message)])
    kept = [(p, stale[p : p + 1]) for p in range(START, len(prompt) - 1) if p not in SOME]
    again = [3 if p < START or p in SOME or p == len(prompt) - 1 else 0 for p in range(len(prompt))]
    logits, _, _ = oracle.run(prompt, again, kept)
    given = answer_of(one_decoder, FixedDrafts(((4, SOME),)), prompt=prompt, return_logits=True)
    torch.testing.assert_close(given.logits[0], logits[-1], atol=1e-4, rtol=1e-4)


def test_what_was_kept_meanwhile_stays_as_it_was(one_decoder: Decoder) -> None:
    """A second draft comes when the reply has begun, and prompt and reply may be kept by then."""
    engine = engine_of(one_decoder, 40)
    resident = keep(engine, MESSAGE, 0, len(MESSAGE))
    plan = FixedDrafts(((2, SOME), (3, tuple(range(START, END)))))
    engine.add(screened("reader", PROMPT, span_of(resident, START), plan=plan, sampling=SamplingParams(max_tokens=12)))
    outputs = []
    while not outputs:
        outputs = engine.step()
    size = len(PROMPT) + len(outputs[0].token_ids) - 1
    kept = engine.keep("reader", 0, size)
    before = engine.export(kept.handle)
    while engine.has_work:
        engine.step()
        engine.check()
    assert len(plan.watches[0].repaired) == len(MESSAGE)
    after = engine.export(kept.handle)
    assert torch.equal(before.k_LNKD, after.k_LNKD)
    assert torch.equal(before.v_LNKD, after.v_LNKD)


def test_a_request_ends_at_any_step_and_leaves_nothing(one_decoder: Decoder) -> None:
    for ending in ("abort", "finish"):
        for number in range(14):
            engine = engine_of(one_decoder, 40, max_rows_per_step=7)
            resident = keep(engine, MESSAGE, 0, len(MESSAGE))
            plan = FixedDrafts(((3, SOME), (2, ())))
            engine.add(
                screened("reader", PROMPT, span_of(resident, START), plan=plan, sampling=SamplingParams(max_tokens=9))
            )
            for _ in range(number):
                engine.step()
            if ending == "abort":
                engine.abort("reader")
            elif number:
                engine.finish("reader")
            while engine.has_work:
                engine.step()
            engine.release_finished()
            engine.check()
            assert engine.memory().pinned == 0


def test_many_drafts_in_little_room_give_what_each_gives_alone(one_decoder: Decoder) -> None:
    engine = engine_of(one_decoder, 13, max_rows_per_step=9)
    resident = keep(engine, MESSAGE, 0, len(MESSAGE))
    sampling = SamplingParams(max_tokens=40)
    plans = [FixedDrafts(((4 + n, SOME[: n + 1]),)) for n in range(4)]
    requests = [
        screened(
            f"r{n}", SYSTEM[n:] + MESSAGE + PROMPT[-1:], span_of(resident, START - n), plan=plan, sampling=sampling
        )
        for n, plan in enumerate(plans)
    ]
    together = run(engine, *requests)
    assert engine.num_preemptions > 0
    assert max(len(plan.watches) for plan in plans) > 1, "none was preempted while it was watched, or behind it"
    for request in requests:
        alone = engine_of(one_decoder, 60)
        mine = keep(alone, MESSAGE, 0, len(MESSAGE))
        wanted = run(alone, replace(request, spans=tuple(replace(span, handle=mine.handle) for span in request.spans)))
        assert together[request.request_id].token_ids == wanted[request.request_id].token_ids


def test_only_what_is_exact_is_left_for_the_next_prompt(one_decoder: Decoder) -> None:
    engine = engine_of(one_decoder, 60)
    resident = keep(engine, MESSAGE, 0, len(MESSAGE))
    request = screened("first", PROMPT, span_of(resident, START), plan=FixedDrafts(((2, SOME),)))
    run(engine, request)
    sources = run(engine, replace(request, request_id="second"))["second"].sources
    assert sources is not None
    assert sources.prefix == START // 16 * 16
    assert sources.repaired == len(SOME)


def test_what_runs_again_cannot_be_kept_meanwhile(one_decoder: Decoder) -> None:
    engine = engine_of(one_decoder, 40, max_rows_per_step=5)
    resident = keep(engine, MESSAGE, 0, len(MESSAGE))
    plan = FixedDrafts(((2, tuple(range(START, END - 1))),))
    engine.add(screened("reader", PROMPT, span_of(resident, START), plan=plan, sampling=SamplingParams(max_tokens=9)))
    refused = 0
    while engine.has_work and not any(output.token_ids for output in engine.step()):
        try:
            engine.keep("reader", 0, len(PROMPT))
        except RequestRefused:
            refused += 1
    assert refused > 12
    run(engine)


def test_a_forced_reply_that_is_planned_anew_goes_on_where_it_was(one_decoder: Decoder) -> None:
    """What its plan was made for is gone when it is admitted again."""
    engine = engine_of(one_decoder, 40, max_rows_per_step=4)
    resident = keep(engine, MESSAGE, 0, len(MESSAGE))
    forced = prompt_of(20, seed=48)
    plan = FixedDrafts(((2, SOME),))
    engine.add(
        screened("reader", PROMPT, span_of(resident, START), plan=plan, forced_output=forced, return_logits=True)
    )
    tokens: list[int] = []
    while len(tokens) < 7:
        tokens += [token for output in engine.step() for token in output.token_ids]
    seq = engine._scheduler.find("reader")
    assert seq is not None
    engine._scheduler._preempt(seq)
    seq.planned_spans = ()
    while engine.has_work:
        tokens += [token for output in engine.step() for token in output.token_ids]
    assert tuple(tokens) == forced
    assert len(plan.watches) == 2


class Faulty(FixedWatch):
    """Answers what it should not."""

    answers = ()

    def ask(self, observation: Observation, speaking: range) -> Draft | Amendment | None:
        return self.answers[len(speaking) > 1]


@pytest.mark.parametrize(
    "answers",
    [
        (Draft(num_tokens=0), None),
        (Draft(num_tokens=2), None),
        (Draft(num_tokens=2), Draft(num_tokens=2)),
        (Draft(num_tokens=2), Amendment(repairs=(3,))),
        (Amendment(repairs=(START, 500)), None),
    ],
)
def test_a_watch_that_breaks_its_contract_ends_its_request_alone(one_decoder: Decoder, answers) -> None:
    class Plan(FixedDrafts):
        def watch(self, view, repaired):
            watch = Faulty(self.amendments, view, repaired)
            watch.answers = answers
            return watch

    engine = engine_of(one_decoder, 60)
    resident = keep(engine, MESSAGE, 0, len(MESSAGE))
    good = screened("good", PROMPT, span_of(resident, START), plan=FixedDrafts(((2, SOME),)))
    bad = replace(good, request_id="bad", selector=Plan(()))
    answered = run(engine, good, bad)
    assert isinstance(answered["bad"].error, SelectorFailed)
    assert len(answered["good"].token_ids) == 1
    engine.step()
    assert engine.memory().pinned == 0


def test_the_keys_read_most_are_those_of_attention(one_decoder: Decoder) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Look(FixedWatch):
        def ask(self, observation: Observation, speaking: range) -> Draft | Amendment | None:
            if len(speaking) == 1:
                return Draft(num_tokens=3)
            stale = range(START, END)
            seen.extend(
                (observation.attention(1, stale), *observation.most_read(1, stale, count)) for count in (4, 200)
            )
            last = speaking[-1:]
            shares, keys = observation.most_read(2, last, 7)
            assert keys.max() <= last[0]
            assert 0 < float(shares.sum()) <= 1 + 1e-5
            return Amendment(repairs=())

    class Plan(FixedDrafts):
        def watch(self, view, repaired):
            return Look(self.amendments, view, repaired)

    answer_of(one_decoder, Plan(()))
    for attention_RP, shares_RC, keys_RC in seen:
        put = torch.zeros_like(attention_RP).scatter_add_(1, keys_RC, shares_RC)
        most = attention_RP.topk(min(shares_RC.shape[1], attention_RP.shape[1])).values
        torch.testing.assert_close(shares_RC[:, : most.shape[1]], most)
        assert ((put - attention_RP).abs() < 1e-6)[put > 0].all()


def test_draft_reading_repairs_its_share(decoder: Decoder) -> None:
    answer = answer_of(decoder, DraftReading(ratio=0.25, tokens=3), sampling=SamplingParams(max_tokens=6))
    assert answer.sources is not None
    assert answer.sources.repaired == len(MESSAGE) // 4
    assert answer.sources.left is not None
    assert answer.sources.left >= 0
    assert answer.sources.screening_row_layers > 0
    assert len(answer.token_ids) == 6
