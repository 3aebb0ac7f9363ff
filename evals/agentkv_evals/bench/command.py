"""The command `agentkv bench`. Quick to import: `agentkv --help` must not wait for torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from agentkv.api import Reuse

bench = typer.Typer(no_args_is_help=True, help="Measure speed: both arms of a comparison in one run, interleaved.")


class Shape(StrEnum):
    """Shapes of models, see `agentkv_evals.bench.shapes`."""

    LLAMA_3_1_8B = "llama-3.1-8b"
    QWEN2_5_14B = "qwen2.5-14b"
    QWEN3_0_6B_LIKE = "qwen3-0.6b-like"
    SMALL = "small"


class Rule(StrEnum):
    """Rules that choose the rows to recompute, see `agentkv_evals.bench.workload.RULES`."""

    RANDOM = "random"
    READING_CHANGE = "reading_change"


class PairShape(StrEnum):
    """Models that the engine and transformers both run, see `agentkv_evals.bench.model_pair`."""

    EMBEDDED = "embedded"
    LLAMA_25M = "llama-25m"
    LLAMA_500M = "llama-500m"


ModelShape = Annotated[Shape, typer.Option(help="Shape of the model; its weights are random numbers.")]
Ratios = Annotated[
    list[float] | None,
    typer.Option(
        min=0,
        max=1,
        help="Share of the reused rows to recompute, repeatable.",
        show_default="0.02 0.05 0.1 0.2; agents: 0.05 0.3; memory: 0.05",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")]
Rounds = Annotated[int, typer.Option(min=1, help="Timed runs of each arm.")]
Seed = Annotated[int, typer.Option(help="Of weights, prompts and chosen rows.")]
File = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")]


@bench.command()
def ttft(
    model_shape: ModelShape = Shape.SMALL,
    length: Annotated[
        list[int] | None, typer.Option(min=64, metavar="TOKENS", help="Prompt length, repeatable.", show_default="2048")
    ] = None,
    ratio: Ratios = None,
    rule: Annotated[
        Rule, typer.Option(help="random: by lot, behind a probe of 1% of the rows. reading_change: the server's rule.")
    ] = Rule.RANDOM,
    rounds: Rounds = 5,
    transformers: Annotated[bool, typer.Option("--transformers", help="Run transformers' generate beside it.")] = False,
    profile: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write profiler traces here and show kernel time by phase.")
    ] = None,
    from_host: Annotated[
        bool, typer.Option("--from-host", help="Add arms whose reused KV comes from host memory.")
    ] = False,
    device: Device = None,
    seed: Seed = 0,
    json_file: File = None,
) -> None:
    """Time to first token, full and screened prefill: fair for speed, never for quality."""
    _run(
        benchmark="ttft",
        shape=model_shape.value,
        lengths=tuple(length or ()),
        ratios=tuple(ratio or ()),
        rule=rule.value,
        rounds=rounds,
        transformers=transformers,
        profile_to=profile,
        from_host=from_host,
        device=device,
        seed=seed,
        json_file=json_file,
    )


@bench.command()
def plot(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `agentkv bench ttft --json` wrote.")],
    target: Annotated[Path, typer.Argument(metavar="SVG", help="The plot.")],
) -> None:
    """Draw how many times faster than full prefill the first token comes, over the rows that run."""
    from agentkv_evals.bench.ttft_plot import plot_ttft  # noqa: PLC0415

    plot_ttft(source, target)


@bench.command()
def decode(
    model_shape: ModelShape = Shape.SMALL,
    length: Annotated[
        int | None, typer.Option(min=64, metavar="TOKENS", help="Prompt length.", show_default="2048")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Running requests, repeatable.", show_default="1 8 32 64")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each request that are timed.")] = 32,
    rounds: Rounds = 5,
    transformers: Annotated[bool, typer.Option("--transformers", help="Run transformers' generate beside it.")] = False,
    device: Device = None,
    seed: Seed = 0,
    json_file: File = None,
) -> None:
    """Tokens a second of a batch."""
    _run(
        benchmark="decode",
        shape=model_shape.value,
        lengths=() if length is None else (length,),
        batches=tuple(batch or (1, 8, 32, 64)),
        tokens=tokens,
        rounds=rounds,
        transformers=transformers,
        device=device,
        seed=seed,
        json_file=json_file,
    )


@bench.command()
def agents(
    model_shape: ModelShape = Shape.SMALL,
    ratio: Ratios = None,
    rule: Annotated[Rule, typer.Option(help="As of ttft.")] = Rule.READING_CHANGE,
    rounds: Rounds = 5,
    device: Device = None,
    seed: Seed = 0,
    json_file: File = None,
) -> None:
    """Time to first token of five agents that read all that those before them wrote (KVCOMM's setting)."""
    _run(
        benchmark="agents",
        shape=model_shape.value,
        ratios=tuple(ratio or ()),
        rule=rule.value,
        rounds=rounds,
        device=device,
        seed=seed,
        json_file=json_file,
    )


@bench.command()
def memory(
    model_shape: ModelShape = Shape.SMALL,
    length: Annotated[
        int | None, typer.Option(min=64, metavar="TOKENS", help="Length of the thread.", show_default="8192")
    ] = None,
    ratio: Ratios = None,
    threads: Annotated[int, typer.Option(min=5, help="KV budget in copies of the thread.")] = 16,
    device: Device = None,
    seed: Seed = 0,
    json_file: File = None,
) -> None:
    """What agents over one thread hold, and how many conversations fit."""
    _run(
        benchmark="memory",
        shape=model_shape.value,
        lengths=() if length is None else (length,),
        ratios=tuple(ratio or ()),
        threads=threads,
        device=device,
        seed=seed,
        json_file=json_file,
    )


class LoadName(StrEnum):
    """Conversations made by lot, see `agentkv_evals.bench.serving.conversations`."""

    FAN_IN = "fan-in"
    ALL_GATHER = "all-gather"


@bench.command()
def serve(
    model_shape: ModelShape = Shape.SMALL,
    load: Annotated[
        list[LoadName] | None,
        typer.Option(help="Conversations made by lot, repeatable.", show_default="both, or with --trace none"),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recorded conversations (JSON lines) to replay beside them.")
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Conversations at once, repeatable.", show_default="1 8 32 64; on cpu 1 4"),
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Rule of a screened arm, repeatable.", show_default="reading_change(0.05)"),
    ] = None,
    agents: Annotated[tuple[int, int], typer.Option(metavar="FEWEST MOST", help="Agents of a conversation.")] = (3, 8),
    message_tokens: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="FEWEST MOST", help="Tokens of a message.", show_default="300 1500; on cpu 30 90"),
    ] = None,
    reply_tokens: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="FEWEST MOST", help="Tokens of a reply.", show_default="as of a message; on cpu 8 16"),
    ] = None,
    talk_rounds: Annotated[int, typer.Option(min=1, help="Rounds of a conversation.")] = 4,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Time for each load, number of conversations and arm.", show_default="60; on cpu 2.5"
        ),
    ] = None,
    conversations: Annotated[
        int | None, typer.Option(min=1, help="End earlier, after so many conversations.", show_default="no limit")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each arm.")] = 1,
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes of KV in the pool.")] = "1GiB",
    host_kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes of KV in host memory.")] = "0",
    device: Device = None,
    seed: Seed = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures here; a run that was cut off goes on there."),
    ] = None,
) -> None:
    """Conversations of several agents at once through the whole service: full, exact and screened prefill."""
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.bench.run import device_here  # noqa: PLC0415
    from agentkv_evals.bench.serving.conversations import Load  # noqa: PLC0415
    from agentkv_evals.bench.serving.run import ServeSettings, run_serving  # noqa: PLC0415

    here = device_here(device)
    on_cpu = here == "cpu"
    settings = ServeSettings(
        shape=model_shape.value,
        loads=tuple(Load(each.value) for each in (load or ([] if trace else list(LoadName)))),
        trace_file=trace,
        concurrency=tuple(concurrency or ((1, 4) if on_cpu else (1, 8, 32, 64))),
        selectors=tuple(selector or ("reading_change(0.05)",)),
        agents=agents,
        tokens=message_tokens or ((30, 90) if on_cpu else (300, 1500)),
        reply_tokens=reply_tokens or ((8, 16) if on_cpu and message_tokens is None else None),
        talk_rounds=talk_rounds,
        seconds=seconds or (2.5 if on_cpu else 60.0),
        conversations=conversations,
        rounds=rounds,
        kv_memory=kv_memory,
        host_kv_memory=host_kv_memory,
        device=here,
        seed=seed,
    )
    run_serving(settings, json_file=json_file, console=Console())


@bench.command()
def server(
    length: Annotated[int, typer.Option(min=64, metavar="TOKENS", help="Length of the conversation.")] = 4096,
    reuse: Annotated[Reuse, typer.Option(help="How much kept KV the chats may read.")] = Reuse.EXACT,
    rounds: Rounds = 5,
    seed: Seed = 0,
    json_file: File = None,
) -> None:
    """What the server adds to its engine's time to first token, with the model of the repository."""
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.bench.server import run_server  # noqa: PLC0415

    run_server(length=length, reuse=reuse, rounds=rounds, seed=seed, json_file=json_file, console=Console())


@bench.command()
def engine(
    model_shape: Annotated[
        PairShape, typer.Option(help="The embedded model, or random weights of a shape.")
    ] = PairShape.EMBEDDED,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Only cases with this in their name, repeatable.", show_default="all"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reply; fewer for a large model.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each arm; one more is dropped.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of both arms.")] = 1,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a decode step goes.")] = False,
    seed: Seed = 0,
    json_file: File = None,
) -> None:
    """The engine against transformers on the same weights and threads: prefill, decode, arrivals of mixed length."""
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.bench.engine_run import run_engine  # noqa: PLC0415

    run_engine(
        shape=model_shape.value,
        names=case or [],
        tokens=tokens,
        rounds=rounds,
        threads=threads,
        profile=profile,
        seed=seed,
        json_file=json_file,
        console=Console(),
    )


@bench.command()
def reuse(
    model_shape: ModelShape = Shape.SMALL,
    length: Annotated[
        int, typer.Option(min=256, metavar="TOKENS", help="Of the critic's prompt; most of others.")
    ] = 4096,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Recorded conversations, too.", show_default="none"),
    ] = None,
    traces: Annotated[int, typer.Option(min=1, help="Conversations of the file.")] = 1,
    selector: Annotated[str, typer.Option(metavar="RULE", help="Rule of the screened arm.")] = "reading_change(0.3)",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each arm.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes of KV.")] = "3GiB",
    seed: Seed = 0,
    json_file: File = None,
) -> None:
    """Five agents that read each other, on CPU: time to first token by way of reuse, and what it goes into."""
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.bench.reuse_run import ReuseSettings, run_reuse  # noqa: PLC0415

    settings = ReuseSettings(
        shape=model_shape.value,
        length=length,
        trace_file=trace,
        num_traces=traces,
        selector=selector,
        dtype=dtype,
        rounds=rounds,
        threads=threads,
        kv_memory=kv_memory,
        seed=seed,
    )
    run_reuse(settings, json_file=json_file, console=Console())


@bench.command()
def peers(
    url: Annotated[str, typer.Option(help="The agentkv server.")] = "http://127.0.0.1:8000",
    peer: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Another server with OpenAI's API, repeatable.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name of each server's model, in order; the first that it lists if not given.",
            show_default=False,
        ),
    ] = None,
    words: Annotated[int, typer.Option(min=1, help="Words of a prompt.")] = 700,
    tokens: Annotated[int, typer.Option(min=2, help="Most tokens of a reply.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each server; one more is dropped.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    json_file: File = None,
) -> None:
    """Servers side by side: time to first token, cold and warm, time a token, tokens a second of eight clients."""
    from rich.console import Console  # noqa: PLC0415

    from agentkv_evals.bench.peers_run import run_peers  # noqa: PLC0415

    run_peers(
        urls=[url, *(peer or [])],
        models=model or [],
        num_words=words,
        num_tokens=tokens,
        rounds=rounds,
        seed=seed,
        json_file=json_file,
        console=Console(),
    )


class LengthFit(StrEnum):
    """Lengths of prompts and replies, see `agentkv_evals.bench.pipeline.load`."""

    SHAREGPT = "sharegpt"
    AZURE = "azure"


@bench.command()
def pipeline(
    model_shape: ModelShape = Shape.SMALL,
    stages: Annotated[int, typer.Option(min=1, help="Processes; 1 runs the model in this one.")] = 2,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Repeatable: fixed-ROWS, throttling, no-waiting-term, no-kv-term, throttling-blocking (one step under "
            "way), throttling-ahead (one more than stages).",
            show_default="fixed-1024 throttling",
        ),
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(min=0.01, help="Requests a second, repeatable.", show_default="4")
    ] = None,
    lengths: Annotated[LengthFit, typer.Option(help="Lengths of prompts and replies.")] = LengthFit.SHAREGPT,
    scale: Annotated[float, typer.Option(min=0.001, help="Lengths are multiplied by this.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.5, help="Time in which requests come; a fifth is warm-up.")] = 40.0,
    warm: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Requests before, for kernels and graphs.")
    ] = 0.0,
    patience: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Time after it for replies to end.")] = 60.0,
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes of KV, all stages.")] = "1GiB",
    max_sequences: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 256,
    simulate: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Simulate so many stages with the costs measured here, repeatable.", show_default="none"
        ),
    ] = None,
    slo_ttft: Annotated[float, typer.Option(metavar="SECONDS", help="Most time to the first token.")] = 2.0,
    slo_tpot: Annotated[float, typer.Option(metavar="SECONDS", help="Most time a token after it.")] = 0.1,
    device: Device = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of arrivals, repeatable.", show_default="0")] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures here; a run that was cut off goes on there."),
    ] = None,
) -> None:
    """Budgets of a pipeline's steps under requests that come by lot: throughput, latency, how alike steps are."""
    from pydantic import ByteSize, TypeAdapter  # noqa: PLC0415

    from agentkv_evals.bench.pipeline.run import run_pipeline  # noqa: PLC0415
    from agentkv_evals.bench.pipeline.settings import PipelineSettings  # noqa: PLC0415

    settings = PipelineSettings(
        shape=model_shape.value,
        stages=stages,
        lengths=lengths.value,
        rates=tuple(rate or (4.0,)),
        arms=tuple(arm or ("fixed-1024", "throttling")),
        seeds=tuple(seed or (0,)),
        seconds=seconds,
        scale=scale,
        kv_memory=TypeAdapter(ByteSize).validate_python(kv_memory),
        max_sequences=max_sequences,
        slo_ttft=slo_ttft,
        slo_tpot=slo_tpot,
        simulate=tuple(simulate or ()),
        warm=warm,
        patience=patience,
        device=device,
        json_file=json_file,
    )
    run_pipeline(settings)


def _run(**options: Any) -> None:
    from agentkv_evals.bench.run import Settings, run_benchmark  # noqa: PLC0415

    run_benchmark(Settings(**options))
