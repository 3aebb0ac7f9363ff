"""The command's options, and what follows from them for measured and simulated runs alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentkv_engine.config import PipelineConfig
from agentkv_engine.pipeline.messages import StepTimes
from agentkv_engine.pipeline.split import split_layers
from agentkv_evals.bench.pipeline.drive import Driven
from agentkv_evals.bench.pipeline.figures import figures
from agentkv_evals.bench.pipeline.load import Arrival, arrivals
from agentkv_evals.bench.shapes import SHAPES

WARM_SHARE = 0.2
"""Of the seconds: what comes in them is not counted."""

MOST_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """The command's options.

    Attributes:
        stages: processes; 1 runs the model in this one.
        kv_memory: bytes, of all stages.
        slo_ttft, slo_tpot: seconds.
        simulate: numbers of stages that are simulated with the costs of the same arm as it ran, else of the last one
            that did; rates, KV memory and sequences are in proportion.
        warm: seconds of requests at the highest rate before the first arm, for kernels and graphs.
        patience: seconds after the last arrival after which a run is cut off.
    """

    shape: str
    stages: int
    lengths: str
    rates: tuple[float, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    scale: float
    kv_memory: int
    max_sequences: int
    slo_ttft: float
    slo_tpot: float
    simulate: tuple[int, ...]
    warm: float
    patience: float
    device: str | None
    json_file: Path | None


def layers_of(settings: PipelineSettings, num_stages: int) -> list[int]:
    """Layers of each of so many stages."""
    stages = split_layers(PipelineConfig(num_stages=num_stages), SHAPES[settings.shape].num_layers)
    return [len(layers) for layers in stages]


def arrivals_of(settings: PipelineSettings, rate: float, seed: int) -> tuple[Arrival, ...]:
    """The requests of a run."""
    return arrivals(settings.lengths, rate=rate, seconds=settings.seconds, scale=settings.scale, seed=seed)


def figures_of(settings: PipelineSettings, driven: Driven, times: Sequence[StepTimes]) -> dict[str, Any]:
    """What a run's times mean."""
    window = (WARM_SHARE * settings.seconds, settings.seconds)
    return figures(driven, times, window=window, slo=(settings.slo_ttft, settings.slo_tpot))
