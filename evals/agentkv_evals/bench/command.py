"""The command `agentkv bench`. Quick to import: what it needs is loaded when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Benchmark(StrEnum):
    """What can be measured."""

    TTFT = "ttft"


class Shape(StrEnum):
    """Shapes of models, see `agentkv_evals.bench.shapes`."""

    LLAMA_3_1_8B = "llama-3.1-8b"
    QWEN3_0_6B_LIKE = "qwen3-0.6b-like"
    SMALL = "small"


def bench(
    benchmark: Annotated[Benchmark, typer.Argument(help="ttft: time to first token, full and screened prefill.")],
    model_shape: Annotated[
        Shape, typer.Option(help="Shape of the model; its weights are random numbers.")
    ] = Shape.SMALL,
    length: Annotated[
        list[int] | None, typer.Option(min=64, metavar="TOKENS", help="Prompt length, repeatable.", show_default="2048")
    ] = None,
    ratio: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, help="Share of the reused rows to recompute, repeatable.", show_default="0.02 0.05 0.1 0.2"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each arm; one more is dropped.")] = 5,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, prompts and chosen rows.")] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures here.")] = None,
) -> None:
    """Measure the engine with random weights of a real model's shape, which is fair for speed and never for quality."""
    # torch takes seconds to import: `agentkv --help` must not.
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.bench.run import run_ttft  # noqa: PLC0415

    assert benchmark is Benchmark.TTFT
    run_ttft(
        shape=model_shape.value,
        lengths=length or [2048],
        ratios=ratio or [0.02, 0.05, 0.1, 0.2],
        rounds=rounds,
        device=device,
        seed=seed,
        json_file=json,
        console=Console(),
    )
