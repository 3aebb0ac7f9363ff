"""The rows contract: chunks, decodes, probes and repairs of one forward pass give what the dense oracle gives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Probe
from dense_oracle import DenseOracle
from engine_driver import FixedPlan, keep, prompt_of, run, span_of

FAMILIES = ["llama", "llama2", "llama-llama3", "llama-yarn", "mistral", "phi3-longrope", "qwen2", "qwen3"]
ONE = SamplingParams(max_tokens=1)


@pytest.fixture
def decoder(small_model: Callable[[str], Path]):
    return load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")


def screened(prompt: tuple[int, ...], *spans, selector, **options) -> Request:
    return Request(
        token_ids=prompt,
        mode=ReuseMode.SCREENED,
        spans=spans,
        selector=selector,
        return_logits=True,
        **{"request_id": "reader", "sampling": ONE, **options},
    )


def deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_chunks_decodes_and_forced_rows_give_one_full_prefill(decoder, chunk: int) -> None:
    prompt, reply = prompt_of(60, seed=1), prompt_of(20, seed=2)
    engine = Engine(decoder, EngineConfig(max_rows_per_step=chunk))
    request = Request(request_id="a", token_ids=prompt, forced_output=reply, return_logits=True)
    answer = run(engine, request)["a"]
    logits, _, _ = DenseOracle(decoder).run(prompt + reply)
    assert answer.token_ids == reply
    assert deviation(answer.logits, logits[len(prompt) - 1 : -1]) < 1e-4


def test_a_mixed_batch_gives_each_what_it_gets_alone(decoder) -> None:
    requests = [
        Request(
            request_id=str(n),
            token_ids=prompt_of(5 + 31 * n, seed=n),
            sampling=SamplingParams(max_tokens=12, temperature=0.8 * (n % 2), seed=n),
            return_logits=True,
        )
        for n in range(6)
    ]
    together = run(Engine(decoder, EngineConfig(max_rows_per_step=48)), *requests)
    for request in requests:
        alone = run(Engine(decoder, EngineConfig()), request)[request.request_id]
        mixed = together[request.request_id]
        assert mixed.token_ids == alone.token_ids
        assert deviation(mixed.logits, alone.logits) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offset", [-40, 0, 1500])
def test_a_span_at_another_offset_is_what_a_rotated_copy_gives(small_model, family: str, offset: int) -> None:
    decoder = load_decoder(small_model(family), dtype=torch.float32, device="cpu")
    engine, oracle = Engine(decoder, EngineConfig()), DenseOracle(decoder)
    author = prompt_of(100, seed=3)
    resident = keep(engine, author, 50, 90)
    start = 50 + offset
    reader = prompt_of(start, seed=4) + author[50:90] + prompt_of(8, seed=5)
    answer = run(engine, screened(reader, span_of(resident, start), selector=FixedPlan({})))["reader"]
    _, kv, _ = oracle.run(author)
    full = decoder.config.num_layers
    depths = [full] * start + [0] * 40 + [full] * 8
    logits, _, _ = oracle.run(reader, depths, [(start, kv[50:90])])
    assert deviation(answer.logits[-1], logits[-1]) < 2e-5 * max(1.0, float(logits[-1].abs().max()))
    assert (answer.sources.reused, answer.sources.computed) == (40, start + 8)


@pytest.mark.parametrize("chunk", [5, 4096])
@pytest.mark.parametrize("levels", [None, (1, 2, 3), (2, 3)])
def test_repairs_of_any_depth_match_the_oracle(small_model, chunk: int, levels: tuple[int, ...] | None) -> None:
    decoder = load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")
    full = decoder.config.num_layers
    assert full == 3
    engine, oracle = Engine(decoder, EngineConfig(max_rows_per_step=chunk, levels=levels)), DenseOracle(decoder)
    author = prompt_of(90, seed=6)
    resident = keep(engine, author, 20, 84)
    reader = prompt_of(33, seed=7) + author[20:84] + prompt_of(9, seed=8)
    wanted = {p: 1 + (p * 7) % full for p in range(33, 97) if p % 3}
    allowed = levels or (full,)
    rounded = {p: min(d for d in allowed if d >= depth) for p, depth in wanted.items()}
    answer = run(engine, screened(reader, span_of(resident, 33), selector=FixedPlan(wanted)))["reader"]
    _, kv, _ = oracle.run(author)
    depths = [full] * 33 + [rounded.get(p, 0) for p in range(33, 97)] + [full] * 9
    logits, reader_kv, _ = oracle.run(reader, depths, [(33, kv[20:84])])
    assert deviation(answer.logits[-1], logits[-1]) < 1e-4
    assert answer.sources.row_layers == sum(depths)

    hop = engine.keep("reader", 30, 100)  # private slots below, shared ones above, homes of two prompts
    second = prompt_of(11, seed=9) + reader[30:100] + prompt_of(6, seed=10)
    request = screened(second, span_of(hop, 11), selector=FixedPlan({40: 2}), request_id="next")
    answer = run(engine, request)["next"]
    depths = [full] * 11 + [0] * 70 + [full] * 6
    depths[40] = min(d for d in allowed if d >= 2)
    logits, _, _ = oracle.run(second, depths, [(11, reader_kv[30:100])])
    assert deviation(answer.logits[-1], logits[-1]) < 1e-4
    assert hop.hops == 1
    assert not hop.exact


def test_full_depth_everywhere_is_full_prefill_and_more_depth_is_less_error(decoder) -> None:
    full, errors = decoder.config.num_layers, []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        deviations = []
        for seed in range(6):
            engine = Engine(decoder, EngineConfig())
            author = prompt_of(120, seed=100 + seed)
            resident = keep(engine, author, 40, 120)
            reader = prompt_of(25, seed=200 + seed) + author[40:120] + prompt_of(5, seed=300 + seed)
            plan = FixedPlan({p: full for p in range(25, 105) if (p * 37 % 80) < share * 80})
            answer = run(engine, screened(reader, span_of(resident, 25), selector=plan))["reader"]
            logits, _, _ = DenseOracle(decoder).run(reader)
            deviations.append(deviation(answer.logits[-1], logits[-1]))
        errors.append(sum(deviations) / len(deviations))
    assert errors[-1] < 1e-4
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1, "stale KV must matter in this test"


def test_layer_0_is_exact_wherever_it_is_reused(decoder) -> None:
    """K and V of layer 0 depend on token and position only: repairing layer 0 alone changes nothing."""
    author = prompt_of(80, seed=11)
    reader = prompt_of(17, seed=12) + author[30:80] + prompt_of(5, seed=13)
    engine = Engine(decoder, EngineConfig())
    resident = keep(engine, author, 30, 80)
    run(engine, screened(reader, span_of(resident, 17), selector=FixedPlan({})))
    reused = engine.export(engine.keep("reader", 17, 67).handle)
    everything = FixedPlan(dict.fromkeys(range(17, 67), decoder.config.num_layers))
    run(engine, screened(reader, span_of(resident, 17), selector=everything, tenant="b", request_id="second"))
    repaired = engine.export(engine.keep("second", 17, 67).handle)
    assert deviation(reused.v_LNKD[0], repaired.v_LNKD[0]) == 0
    assert deviation(reused.v_LNKD[1], repaired.v_LNKD[1]) > 1e-2


def test_the_last_row_of_a_prompt_that_is_one_segment_is_computed(decoder) -> None:
    author = prompt_of(64, seed=14)
    engine = Engine(decoder, EngineConfig())
    resident = keep(engine, author, 16, 48, mode=ReuseMode.OFF)
    reader = author[16:48]
    answer = run(engine, screened(reader, span_of(resident, 0), selector=FixedPlan({}), tenant="b"))["reader"]
    _, kv, _ = DenseOracle(decoder).run(author)
    full = decoder.config.num_layers
    logits, _, _ = DenseOracle(decoder).run(reader, [0] * 31 + [full], [(0, kv[16:48])])
    assert deviation(answer.logits[-1], logits[-1]) < 1e-4
    assert (answer.sources.reused, answer.sources.repaired) == (31, 1)


@pytest.mark.parametrize("chunk", [6, 4096])
def test_a_probe_sees_stale_keys_and_leaves_nothing_behind(decoder, chunk: int) -> None:
    """Probe rows run over stale keys; fresh text between spans is not there yet. Afterwards only the plan counts."""
    full = decoder.config.num_layers
    author = prompt_of(100, seed=15)
    engine, oracle = Engine(decoder, EngineConfig(max_rows_per_step=chunk)), DenseOracle(decoder)
    first = keep(engine, author, 10, 50)
    second = engine.keep("author", 60, 100)
    reader = prompt_of(12, seed=16) + author[10:50] + prompt_of(7, seed=17) + author[60:100]
    probe = Probe(positions=tuple(range(89, 99)), depth=full)
    plan = FixedPlan(dict.fromkeys(range(20, 30), full), probe)
    spans = (span_of(first, 12), span_of(second, 59))
    answer = run(engine, screened(reader, *spans, selector=plan))["reader"]
    _, kv, _ = oracle.run(author)
    reused = [(12, kv[10:50]), (59, kv[60:100])]

    probing = [full] * 12 + [0] * 77 + [full] * 10
    _, _, maps = oracle.run(reader, probing, reused, hidden_keys=set(range(52, 59)))
    (observation,) = plan.seen
    assert observation.positions == probe.positions
    for layer in range(full):
        assert deviation(observation.attention_LRP[layer], maps[layer][89:99]) < 1e-5

    depths = [full] * 12 + [full if 20 <= p < 30 else 0 for p in range(12, 52)] + [full] * 7 + [0] * 39 + [full]
    logits, _, _ = oracle.run(reader, depths, reused)
    assert deviation(answer.logits[-1], logits[-1]) < 1e-4
    assert answer.sources.probe_row_layers == 10 * full
    assert (answer.sources.computed, answer.sources.repaired, answer.sources.reused) == (19, 11, 69)


def test_export_and_load_bring_the_same_keys_back(decoder) -> None:
    author = prompt_of(70, seed=18)
    reader = prompt_of(9, seed=19) + author[20:70] + prompt_of(4, seed=20)
    engine = Engine(decoder, EngineConfig())
    resident = keep(engine, author, 20, 70)
    direct = run(engine, screened(reader, span_of(resident, 9), selector=FixedPlan({})))["reader"]
    other = Engine(decoder, EngineConfig())
    loaded = other.load(engine.export(resident.handle))
    copied = run(other, screened(reader, span_of(loaded, 9), selector=FixedPlan({})))["reader"]
    assert deviation(direct.logits, copied.logits) < 1e-5
    assert (loaded.token_ids, loaded.exact, loaded.hops) == (resident.token_ids, resident.exact, resident.hops)
