"""The training loop: a plan by the clock, fresh data, one graph replay a step, accuracy now and then."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from agentkv_evals.training import checkpoint
from agentkv_evals.training.construct import construct
from agentkv_evals.training.encode import Encoder
from agentkv_evals.training.feed import Feed
from agentkv_evals.training.model import Decoder, Shape
from agentkv_evals.training.plan import PLANS, Stage
from agentkv_evals.training.quick import Graded, accuracy, graded_items, graded_roles, lines
from agentkv_evals.training.step import Stepper

WARM_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One piece of training. `minutes` is wall-clock time from the first step; `resume` a folder of weights."""

    plan: str
    tokenizer: Path
    out: Path
    minutes: float
    resume: Path | None = None
    shape: Shape | None = None
    device: str = "cuda"
    workers: int = 14
    seed: int = 0
    compile: bool = True
    evaluate_every: float = 60.0
    per_cell: int = 16
    give_up: tuple[float, float] = (1e9, 0.0)


def train(run: Run) -> None:
    """Train and save; stops early when after `give_up[0]` seconds the mean accuracy is below `give_up[1]`."""
    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")
    stages = PLANS[run.plan]
    feed = Feed(
        tokenizer_path=str(run.tokenizer),
        levels=tuple(stage.levels for stage in stages),
        workers=run.workers,
        seed=run.seed,
        device=run.device,
    )
    try:
        model = checkpoint.load(run.resume) if run.resume else _new_model(run)
        model.to(run.device)
        print(f"{checkpoint.count_parameters(model):,} parameters", flush=True)
        encoder = Encoder(Tokenizer.from_file(str(run.tokenizer)))
        graded = graded_items(encoder, run.per_cell) + graded_roles(encoder, run.per_cell)
        _steps(run, stages, feed, model, graded)
    finally:
        feed.close()


def _new_model(run: Run) -> Decoder:
    model = Decoder(run.shape or Shape())
    construct(model, run.seed)
    return model


def _steps(run: Run, stages: tuple[Stage, ...], feed: Feed, model: Decoder, graded: list[Graded]) -> None:
    stepper = Stepper(model, run.device)
    if run.compile:
        stepper.compile()
    clock, total, history = _Clock(), run.minutes * 60, []
    step, stage_index, next_report, loss = 0, -1, run.evaluate_every, math.nan
    while (now := clock.seconds()) < total:
        index, rate = at(stages, now / total)
        if index != stage_index:
            stage_index = index
            feed.set_stage(index)
        stage = stages[index]
        stepper.set_rate(rate * min(1.0, (step + 1) / WARM_STEPS))
        before = time.monotonic()
        feed.refresh()
        batch = feed.batch(*stage.batches[step % len(stage.batches)])
        stepper(batch)
        step += 1
        if step <= 20 or step % 50 == 0:
            loss = stepper.loss.item()
            if step <= 3 and step > 0:
                print(f"step {step} loss {loss:.3f} took {time.monotonic() - before:.1f} s", flush=True)
        if now >= next_report:
            next_report = now + run.evaluate_every
            with clock.paused():
                mean = _report(run, model, graded, step, clock.seconds(), loss, feed.rows_made, history)
                checkpoint.save(model, run.out / "weights")
            if now > run.give_up[0] and mean < run.give_up[1]:
                print("giving up: the accuracy is too low", flush=True)
                break
    checkpoint.save(model, run.out / "weights")
    _report(run, model, graded, step, clock.seconds(), stepper.loss.item(), feed.rows_made, history)


def at(stages: tuple[Stage, ...], done: float) -> tuple[int, float]:
    """The stage and the learning rate after a share `done` of the time; the rate runs linearly within a stage."""
    start = 0.0
    for index, stage in enumerate(stages):
        if done < start + stage.share or index == len(stages) - 1:
            part = min(1.0, (done - start) / stage.share)
            return index, stage.rate[0] + (stage.rate[1] - stage.rate[0]) * part
        start += stage.share
    raise AssertionError("a plan has stages")


class _Clock:
    """Seconds of training; evaluation is not counted."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def paused(self) -> _Pause:
        return _Pause(self)

    def skip(self, seconds: float) -> None:
        self._start += seconds


class _Pause:
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.skip(time.monotonic() - self._since)


def _report(
    run: Run,
    model: Decoder,
    graded: list[Graded],
    step: int,
    seconds: float,
    loss: float,
    rows: int,
    history: list[dict[str, object]],
) -> float:
    """Print the accuracy table and append it to the run's log; returns the mean over cells."""
    dtype = torch.bfloat16 if run.device.startswith("cuda") else torch.float32
    with torch.compiler.set_stance("force_eager"):
        cells = accuracy(model, graded, run.device, dtype)
    mean = sum(cells.values()) / len(cells)
    print(f"-- step {step} {seconds:.0f} s loss {loss:.3f} rows made {rows} mean {mean:.3f}", flush=True)
    print("\n".join(lines(cells)), flush=True)
    history.append(
        {
            "step": step,
            "seconds": round(seconds, 1),
            "loss": loss,
            "cells": {"/".join(map(str, c)): v for c, v in cells.items()},
        }
    )
    run.out.mkdir(parents=True, exist_ok=True)
    (run.out / "history.json").write_text(json.dumps({"plan": run.plan, "seed": run.seed, "history": history}))
    return mean
