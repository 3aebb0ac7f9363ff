"""Steps replayed from refilled buffers give what steps launched one by one give: padded rows, probes, traces.

On CUDA graphs are captured. Elsewhere Triton's interpreter runs the kernels (see test_attention_backends.py), and a
"graph" is a function that is called again: what is captured, and what is data, is the same.
"""

import os
from dataclasses import replace

import pytest
import torch

from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.model.operations import TorchOperations
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Probe
from agentkv_engine.runner.forward import EagerForward
from engine_driver import ONE, Answer, FixedPlan, keep, prompt_of, run, span_of

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytest.importorskip("triton", reason="Triton is not installed: nothing is captured")
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA device: set TRITON_INTERPRET=1 to run the kernels on CPU", allow_module_level=True)

from agentkv_engine.attention.sdpa import SdpaBackend  # noqa: E402
from agentkv_engine.attention.triton_rows import TritonRows  # noqa: E402
from agentkv_engine.runner import graphs  # noqa: E402
from agentkv_engine.runner.graphs import GraphForward  # noqa: E402

pytestmark = [pytest.mark.gpu] if CUDA else []
AUTHOR = prompt_of(60, seed=1)
PROMPT = prompt_of(13, seed=2) + AUTHOR[10:50] + prompt_of(9, seed=3)


def called_again(run_step):
    """Stands for a captured graph where there is no CUDA."""
    hidden = run_step()

    def replay() -> None:
        for old, new in zip(hidden, run_step(), strict=True):
            old.copy_(new)

    return hidden, replay, 0


def graphs_over(decoder, pool: KVPool, eager: EagerForward) -> GraphForward:
    """A forward that replays what it can; without a GPU a replay calls the step again."""
    shape = decoder.config
    backend = TritonRows(
        decoder.rope,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=torch.float32,
        device=DEVICE,
    )
    return GraphForward(
        eager,
        decoder,
        pool=pool,
        backend=backend,
        operations=TorchOperations(),
        memory=1 << 30,
        capture=graphs.cuda_capture() if CUDA else called_again,
    )


def engine_with(decoder, *, replayed: bool, **options) -> tuple[Engine, GraphForward | None]:
    config = EngineConfig(device=DEVICE, dtype=torch.float32, trace_layers=(1,), graph_memory=0, **options)
    engine = Engine(decoder, config)
    pool, operations = engine._runner.tensors, TorchOperations()
    eager = EagerForward(decoder, backend=SdpaBackend(decoder.rope, DEVICE), pool=pool, operations=operations)
    engine._runner._forward = eager
    if not replayed:
        return engine, None
    forward = graphs_over(decoder, pool, eager)
    engine._runner._forward = forward
    engine._runner.prepares = True
    return engine, forward


def answers(engine: Engine) -> tuple[list[dict[str, Answer]], list[FixedPlan]]:
    """Three rounds of a screened request with a probe, beside a prompt and its decodes."""
    resident = keep(engine, AUTHOR, 10, 50)
    sampling = SamplingParams(max_tokens=3)
    rounds, plans = [], []
    for number in range(3):
        plans.append(
            FixedPlan(dict.fromkeys(range(20, 30 + number), 3), Probe(positions=tuple(range(50, 62)), depth=3))
        )
        reader = Request(
            request_id=f"reader {number}",
            token_ids=PROMPT,
            sampling=sampling,
            mode=ReuseMode.SCREENED,
            tenant=str(number),
            spans=(span_of(resident, 13),),
            selector=plans[-1],
            return_logits=True,
        )
        other = Request(
            request_id=f"other {number}",
            token_ids=prompt_of(5 + number, seed=number),
            sampling=sampling,
            mode=ReuseMode.OFF,
            return_logits=True,
        )
        rounds.append(run(engine, reader, other))
    return rounds, plans


@pytest.fixture(scope="module")
def decoder(small_model):
    from agentkv_engine.model.checkpoint import load_decoder

    return load_decoder(small_model("qwen2"), dtype=torch.float32, device=DEVICE)


def test_replayed_steps_answer_alike(decoder) -> None:
    engine, forward = engine_with(decoder, replayed=True)
    plain, _ = engine_with(decoder, replayed=False)
    (got, plans), (expected, plain_plans) = answers(engine), answers(plain)
    assert forward is not None
    assert forward.num_graphs >= 3  # probe, planned rows, decodes
    for ours, theirs in zip(got, expected, strict=True):
        for name, answer in ours.items():
            assert answer.token_ids == theirs[name].token_ids
            assert (answer.logits - theirs[name].logits).abs().max() < 1e-3
    for plan, plain_plan in zip(plans, plain_plans, strict=True):
        assert (plan.seen[0].attention_LRP - plain_plan.seen[0].attention_LRP).abs().max() < 1e-4


def test_decodes_prepared_while_others_run_answer_alike(decoder) -> None:
    """Tokens that are put in later, sequences that end, come and are aborted while the next step has begun."""
    engine, _ = engine_with(decoder, replayed=True)
    plain, _ = engine_with(decoder, replayed=False)
    begun = []
    submit = engine._runner.submit
    engine._runner.submit = lambda schedule, check: begun.append(engine._runner._prepared) or submit(schedule, check)
    tokens = []
    for one in (engine, plain):
        tokens.append(answers_of := {})
        for number, length in enumerate((8, 14, 20)):
            sampling = SamplingParams(max_tokens=length)
            one.add(Request(request_id=f"{number}", token_ids=prompt_of(9, seed=number), sampling=sampling))
        late = Request(request_id="late", token_ids=prompt_of(20, seed=9), sampling=SamplingParams(max_tokens=5))
        while one.has_work:
            for output in one.step():
                answers_of.setdefault(output.request_id, []).extend(output.token_ids)
            one.check()
            if late is not None and len(answers_of.get("2", ())) == 10:
                one.add(late)
                late = None
            if len(answers_of.get("2", ())) == 18:
                one.abort("2")
        one.release_finished()
        assert one.memory().pinned == 0
    assert tokens[0] == tokens[1]
    assert sum(prepared is not None for prepared in begun) >= 5


def test_a_prepared_graph_counts_as_used(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, forward = engine_with(decoder, replayed=True)
    assert forward is not None
    prepare, last = forward.prepare, []

    def watched(rows) -> bool:
        if not prepare(rows):
            return False
        last.append(next(reversed(forward._graphs)) == forward._size(rows))
        forward._graphs.move_to_end(forward._size(rows), last=False)
        return True

    monkeypatch.setattr(forward, "prepare", watched)
    answers(engine)
    sampling = SamplingParams(max_tokens=6)
    run(engine, *(Request(request_id=f"{n}", token_ids=prompt_of(9, seed=n), sampling=sampling) for n in range(2)))
    assert last
    assert all(last)


def test_no_memory_captures_nothing(decoder) -> None:
    engine, forward = engine_with(decoder, replayed=True)
    assert forward is not None
    forward._memory = 0
    answers(engine)
    assert forward.num_graphs == 0


@pytest.mark.parametrize("most_deepened", [0, 1000])
def test_rows_of_several_depths(decoder, most_deepened: int) -> None:
    """They are launched one by one; or run as a whole, and what the shallow ones write further up changes nothing."""
    engine, forward = engine_with(decoder, replayed=True, levels=(1, decoder.config.num_layers))
    plain, _ = engine_with(decoder, replayed=False, levels=(1, decoder.config.num_layers))
    engine._runner._inputs._most_deepened = most_deepened
    logits = []
    for one in (engine, plain):
        resident = keep(one, AUTHOR, 10, 50)
        for number in range(3):
            request = Request(
                request_id=f"reader {number}",
                token_ids=PROMPT,
                sampling=ONE,
                mode=ReuseMode.SCREENED,
                tenant=str(number),
                spans=(span_of(resident, 13),),
                selector=FixedPlan({20: 1, 21: 3}, Probe(positions=(55, 60), depth=1)),
                return_logits=True,
            )
            answer = run(one, request)[request.request_id]
        logits.append(answer.logits)
    assert forward is not None
    assert (forward.num_graphs > 0) == (most_deepened > 0)
    assert (logits[0] - logits[1]).abs().max() < 1e-3


def test_rows_of_one_small_depth_are_captured(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh rows that are run for a mere look."""
    monkeypatch.setattr("agentkv_engine.runner.observer.FEW_LAYERS", 1)
    plain, _ = engine_with(decoder, replayed=False)
    engine, forward = engine_with(decoder, replayed=True)
    logits = []
    for one in (engine, plain):
        resident = keep(one, AUTHOR, 10, 50)
        for number in range(3):
            request = Request(
                request_id=f"reader {number}",
                token_ids=PROMPT,
                sampling=ONE,
                mode=ReuseMode.SCREENED,
                tenant=str(number),
                spans=(span_of(resident, 13),),
                selector=FixedPlan({20: 3, 21: 3}, Probe(positions=(), depth=1)),
                return_logits=True,
            )
            answer = run(one, request)[request.request_id]
        logits.append(answer.logits)
    assert forward is not None
    assert {size.depth for size in forward._graphs} == {1, 3}
    assert (logits[0] - logits[1]).abs().max() < 1e-3


def test_buckets() -> None:
    assert [graphs.bucket(n) for n in (1, 2, 3, 33, 64, 65, 650)] == [1, 2, 4, 64, 64, 128, 768]


def test_two_stages_replay_what_one_forward_gives(small_model, decoder) -> None:
    """A later stage begins with what the one before passes on; its padded rows write nowhere."""
    whole, _ = engine_with(decoder, replayed=True)
    seen = []
    forward = whole._runner._forward
    whole._runner._forward = Recorded(forward, seen)
    sampling = SamplingParams(max_tokens=5)
    requests = (Request(request_id=f"{n}", token_ids=prompt_of(9 + n, seed=n), sampling=sampling) for n in range(3))
    run(whole, *requests)
    stages = [stage_forward(small_model("qwen2"), layers, whole) for layers in (range(2), range(2, 3))]
    for rows, expected in seen:
        parts = [part_of(rows, slice(0, 2), is_last=False), part_of(rows, slice(2, 3), is_last=True)]
        passed = stages[0].passed_on(stages[0].ready(parts[0]))[: rows.num_rows]
        logits = stages[1](stages[1].ready(parts[1]), passed)
        assert (logits - expected).abs().max() < 1e-3
    assert all(stage.num_graphs for stage in stages)


class Recorded:
    """A forward that remembers steps and their logits."""

    most_captured = 0

    def __init__(self, forward, seen: list) -> None:
        self._forward = forward
        self._seen = seen

    def prepare(self, rows) -> bool:
        return False

    def __call__(self, rows):
        logits = self._forward(rows)
        self._seen.append((rows, logits.clone()))
        return logits


def part_of(rows, layers: slice, *, is_last: bool):
    """The same rows, for a stage of some of the layers."""
    return replace(
        rows,
        writing=rows.writing[layers],
        attending=rows.attending[layers],
        list_of_layer=rows.list_of_layer[layers],
        ends_early=rows.ends_early and is_last,
    )


def stage_forward(directory, layers: range, whole: Engine) -> GraphForward:
    """A stage's forward over a pool of its own, as large as the whole model's."""
    from agentkv_engine.model.checkpoint import load_decoder

    part = load_decoder(directory, dtype=torch.float32, device=DEVICE, layers=layers)
    shape = part.config
    pool = KVPool(
        num_layers=len(layers),
        num_blocks=whole.memory().num_blocks,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=torch.float32,
        device=DEVICE,
    )
    eager = EagerForward(part, backend=SdpaBackend(part.rope, DEVICE), pool=pool, operations=TorchOperations())
    return graphs_over(part, pool, eager)
