"""The command `agentkv bench`. Quick to import: what it needs is loaded when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Benchmark(StrEnum):
    """What can be measured."""

    TTFT = "ttft"
    DECODE = "decode"
    MEMORY = "memory"
    SERVER = "server"


class Shape(StrEnum):
    """Shapes of models, see `agentkv_evals.bench.shapes`."""

    LLAMA_3_1_8B = "llama-3.1-8b"
    QWEN3_0_6B_LIKE = "qwen3-0.6b-like"
    SMALL = "small"


def bench(
    benchmark: Annotated[
        Benchmark,
        typer.Argument(
            help="ttft: time to first token, full and screened prefill. decode: tokens a second of a batch. memory: "
            "what agents over one thread hold, and how many conversations fit. server: first token over HTTP and in "
            "process, with the model of the repository."
        ),
    ],
    model_shape: Annotated[
        Shape, typer.Option(help="Shape of the model; its weights are random numbers.")
    ] = Shape.SMALL,
    length: Annotated[
        list[int] | None,
        typer.Option(
            min=64,
            metavar="TOKENS",
            help="Prompt length; repeatable for ttft.",
            show_default="2048; memory: 8192; server: 4096",
        ),
    ] = None,
    ratio: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the reused rows to recompute, repeatable (ttft, memory).",
            show_default="0.02 0.05 0.1 0.2; memory: 0.05",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Running requests, repeatable (decode).", show_default="1 8 32 64"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each request that are timed (decode).")] = 32,
    threads: Annotated[int, typer.Option(min=5, help="KV budget in copies of the thread (memory).")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each arm.")] = 5,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="Run transformers' generate beside it (decode).")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write profiler traces here and show kernel time by phase (ttft)."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, prompts and chosen rows.")] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures here.")] = None,
) -> None:
    """Measure the engine with random weights of a real model's shape, which is fair for speed and never for quality."""
    # torch takes seconds to import: `agentkv --help` must not.
    if benchmark is Benchmark.SERVER:
        from rich.console import Console  # noqa: PLC0415

        from agentkv_evals.bench.server import run_server  # noqa: PLC0415

        conversation = length[0] if length else 4096
        run_server(length=conversation, rounds=rounds, seed=seed, json_file=json, console=Console())
        return
    from agentkv_evals.bench.run import Settings, run_benchmark  # noqa: PLC0415

    run_benchmark(
        Settings(
            benchmark=benchmark.value,
            shape=model_shape.value,
            lengths=tuple(length or ()),
            ratios=tuple(ratio or ()),
            batches=tuple(batch or (1, 8, 32, 64)),
            tokens=tokens,
            threads=threads,
            rounds=rounds,
            transformers=transformers,
            profile_to=profile,
            device=device,
            seed=seed,
            json_file=json,
        )
    )
