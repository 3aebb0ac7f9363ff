"""The prefix index in the engine: what is found again, by whom, and what must never be."""

from hashlib import blake2b

from agentkv.screening.selectors.registry import parse_selector
from agentkv_engine.cache import prefix_index
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from engine_driver import ONE, FixedPlan, engine_of, keep, prompt_of, run, screened, span_of


def test_an_exact_prefix_is_found_again_and_gives_the_same_answer(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(70, seed=2)
    options = {"token_ids": prompt, "sampling": SamplingParams(max_tokens=8), "return_logits": True}
    cold = run(engine, Request(request_id="cold", **options))["cold"]
    warm = run(engine, Request(request_id="warm", **options))["warm"]
    off = run(engine, Request(request_id="off", mode=ReuseMode.OFF, **options))["off"]
    assert (cold.sources.prefix, warm.sources.prefix, off.sources.prefix) == (0, 64, 0)
    assert cold.token_ids == warm.token_ids == off.token_ids
    assert (warm.logits - off.logits).abs().max() < 1e-4


def test_generated_tokens_are_a_prefix_too(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(30, seed=3)
    first = run(engine, Request(request_id="a", token_ids=prompt, sampling=SamplingParams(max_tokens=40)))["a"]
    longer = prompt + first.token_ids + prompt_of(5, seed=4)
    second = run(engine, Request(request_id="b", token_ids=longer, sampling=ONE))["b"]
    assert second.sources.prefix == 64  # 69 tokens have KV: the last sampled one has none


def test_a_whole_prompt_in_the_prefix_index_computes_its_last_row(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(64, seed=5)
    cold = run(engine, Request(request_id="a", token_ids=prompt, sampling=ONE))["a"]
    warm = run(engine, Request(request_id="b", token_ids=prompt, sampling=ONE))["b"]
    assert warm.token_ids == cold.token_ids
    assert (warm.sources.prefix, warm.sources.computed) == (63, 1)


def test_tenants_share_nothing(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(64, seed=6)
    run(engine, Request(request_id="a", token_ids=prompt, tenant="ann", sampling=ONE))
    other = run(engine, Request(request_id="b", token_ids=prompt, tenant="bob", sampling=ONE))["b"]
    assert other.sources.prefix == 0


def test_screened_keys_never_reach_exact_requests(decoder) -> None:
    engine = engine_of(decoder, 100)
    author = prompt_of(80, seed=7)
    resident = keep(engine, author, 20, 80)
    reader = prompt_of(18, seed=8) + author[20:80] + prompt_of(6, seed=9)
    first = run(engine, screened("a", reader, span_of(resident, 18)))["a"]
    again = run(engine, screened("b", reader, span_of(resident, 18)))["b"]
    exact = run(engine, Request(request_id="c", token_ids=reader, sampling=ONE, return_logits=True))["c"]
    off = run(engine, Request(request_id="d", token_ids=reader, sampling=ONE, mode=ReuseMode.OFF, return_logits=True))[
        "d"
    ]
    assert first.sources.reused == 60
    assert again.sources.prefix == 80
    assert again.token_ids == first.token_ids
    assert exact.sources.prefix == 16, "only the block before the span is exact"
    assert (exact.logits - off.logits).abs().max() < 1e-4


def test_a_screened_hit_is_shown_to_the_selector_with_the_depth_spent(decoder) -> None:
    engine = engine_of(decoder, 100)
    author = prompt_of(64, seed=10)
    resident = keep(engine, author, 0, 64, mode=ReuseMode.OFF, tenant="x")
    reader = prompt_of(16, seed=11) + author + prompt_of(16, seed=12)
    run(engine, screened("a", reader, span_of(resident, 16), plan=FixedPlan(dict.fromkeys(range(16, 48), 3))))
    plan = FixedPlan({})
    run(engine, screened("b", reader + prompt_of(4, seed=13), plan=plan))
    (view,) = plan.views
    assert view.num_prefix == 48
    assert [(span.start, span.end, span.handle, span.hops) for span in view.spans] == [(48, 96, None, 1)]
    assert not view.spans[0].context_changed


def test_what_one_rule_repaired_is_not_read_by_another(decoder) -> None:
    engine = engine_of(decoder, 100)
    author = prompt_of(64, seed=52)
    resident = keep(engine, author, 0, 64, mode=ReuseMode.OFF)
    reader = prompt_of(16, seed=53) + author + prompt_of(9, seed=54)
    run(engine, screened("a", reader, span_of(resident, 16), plan=parse_selector("repair_none")))
    again = run(engine, screened("b", reader, span_of(resident, 16), plan=parse_selector("repair_none")))["b"]
    thorough = run(engine, screened("c", reader, span_of(resident, 16), plan=parse_selector("repair_boundary(64)")))[
        "c"
    ]
    assert again.sources.prefix == 80
    assert (thorough.sources.prefix, thorough.sources.repaired) == (16, 64)


def test_leaves_of_the_prefix_index_go_before_their_roots(decoder) -> None:
    engine = engine_of(decoder, 100)
    prompt = prompt_of(160, seed=57)
    run(engine, Request(request_id="a", token_ids=prompt[:80], sampling=ONE))
    run(engine, Request(request_id="b", token_ids=prompt, sampling=ONE))
    engine.release_finished()
    for left in range(9, 0, -1):
        victim = next(iter(engine._pool.policy.candidates()))
        engine._pool.drop(victim)
        assert len(engine._prefixes.match(engine._prefixes.chain("").of(prompt), rule=None)) == left


def test_a_waiting_chat_hashes_each_block_once(decoder, monkeypatch) -> None:
    hashed = 0

    def counting(*arguments, **options):
        nonlocal hashed
        hashed += 1
        return blake2b(*arguments, **options)

    monkeypatch.setattr(prefix_index, "blake2b", counting)
    engine = engine_of(decoder, 12)  # room for one of the two
    for number, seed in enumerate((58, 59)):
        prompt = prompt_of(96, seed=seed)
        engine.add(Request(request_id=str(number), token_ids=prompt, sampling=SamplingParams(max_tokens=40)))
    while engine.has_work:
        engine.step()
    assert hashed <= 2 * (1 + 136 // 16)  # a root and its blocks, each
