"""Where the time of an engine step goes: schedule, inputs, forward, sample, update."""

import random
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.runner import model_runner

TENSOR_WORK = ("forward", "sample")


def profile_steps(engine: Engine, *, batch: int, prompt: int, steps: int, seed: int) -> dict[str, float]:
    """CPU seconds of one decode step by phase, `step` being the whole of it. The engine is good for nothing after."""
    lot = random.Random(seed)
    for number in range(batch):
        token_ids = tuple(lot.choices(range(engine.model_config.vocab_size), k=prompt))
        params = SamplingParams(max_tokens=steps + 16)
        engine.add(Request(request_id=str(number), token_ids=token_ids, sampling=params, mode=ReuseMode.OFF))
    spent: defaultdict[str, float] = defaultdict(float)
    scheduler, runner = engine._scheduler, engine._runner
    assert isinstance(runner, model_runner.ModelRunner), "only a model in this process can be profiled"
    sample = model_runner.sample
    for owner, name, phase in (
        (scheduler, "schedule", "schedule"),
        (runner._inputs, "build", "inputs"),
        (runner, "_forward", "forward"),
        (model_runner, "sample", "sample"),
        (scheduler, "update", "update"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), phase, spent))
    try:
        for _ in range(8):
            engine.step()
        spent.clear()
        started = time.process_time()
        for _ in range(steps):
            engine.step()
        spent["step"] = time.process_time() - started
    finally:
        model_runner.sample = sample
    return {phase: seconds / steps for phase, seconds in spent.items()}


def share_outside_tensors(spent: dict[str, float]) -> float:
    """Share of a step that is neither forward pass nor sampling."""
    return 1 - sum(spent[phase] for phase in TENSOR_WORK) / spent["step"]


def _timed(call: Callable[..., Any], phase: str, spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        result = call(*arguments)
        spent[phase] += time.process_time() - started
        return result

    return timed
