"""How long a stage takes for a step, fitted to what stages took."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from agentkv_engine.pipeline.messages import StepTimes
from agentkv_engine.scheduler.output import SchedulerOutput


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step's time depends on: rows, keys that they read, tokens sampled."""

    rows: int
    keys: int
    samples: int

    @classmethod
    def of(cls, schedule: SchedulerOutput) -> "StepSize":
        """The size of a step."""
        keys = sum(int(item.rows.positions.sum()) + len(item.rows) for item in schedule.scheduled)
        return cls(schedule.num_rows, keys, sum(item.samples for item in schedule.scheduled))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Seconds of a stage: per layer as in DynaPipe (NeurIPS'25), `T = phi1 n + phi2 n L + eps`, and for sampling
    `T = alpha n + beta` on the last stage.

    Attributes:
        layer, per_row, per_key: eps, phi1, phi2, of one layer.
        sampling, per_sample: beta, alpha.
        transfer: from one stage to the next.
        order: from the driver to a stage, and back.
        driver: of the driver's process, for one step.
    """

    layer: float
    per_row: float
    per_key: float
    sampling: float
    per_sample: float
    transfer: float
    order: float
    driver: float

    def stage(self, size: StepSize, num_layers: int, *, is_last: bool) -> float:
        """Seconds of one stage for one step."""
        layers = num_layers * (self.layer + self.per_row * size.rows + self.per_key * size.keys)
        return layers + (self.sampling + self.per_sample * size.samples if is_last else 0.0)


def fit(sizes: Sequence[StepSize], times: Sequence[StepTimes], layers: Sequence[int], *, driver: float) -> StageCosts:
    """Costs by least squares over all stages' steps, none below 0. Transfer is what passed at least (10th
    percentile) between a stage's end and the arrival at the next one, which may have been busy; order is the median of
    what it took to build a step's inputs.

    Args:
        sizes: of the steps, in order.
        times: of all stages' steps, in order at each stage; as many as sizes for each.
        layers: how many each stage has.
        driver: seconds of its process for a step.
    """
    stages = [[each for each in times if each.stage == number] for number in range(len(layers))]
    lines, seconds = [], []
    for number, mine in enumerate(stages):
        last = number == len(layers) - 1
        for size, each in zip(sizes, mine, strict=True):
            per_layer = (layers[number], layers[number] * size.rows, layers[number] * size.keys)
            lines.append([*per_layer, *((1, size.samples) if last else (0, 0))])
            seconds.append(each.done - each.arrived)
    scale = np.maximum(np.abs(np.asarray(lines)).max(0), 1)
    layer, row, key, sampling, sample = _not_negative(np.asarray(lines) / scale, np.asarray(seconds)) / scale
    passed = [b.arrived - a.done for one, two in pairwise(stages) for a, b in zip(one, two, strict=True)]
    ordered = [each.built - each.ordered for each in times]
    return StageCosts(
        layer=float(layer),
        per_row=float(row),
        per_key=float(key),
        sampling=float(sampling),
        per_sample=float(sample),
        transfer=max(0.0, float(np.percentile(passed, 10))) if passed else 0.0,
        order=float(np.median(ordered)) if ordered else 0.0,
        driver=driver,
    )


def _not_negative(lines: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Least squares without the terms that would come out below 0."""
    kept = np.ones(lines.shape[1], dtype=bool)
    while True:
        found = np.zeros(lines.shape[1])
        found[kept] = np.linalg.lstsq(lines[:, kept], seconds, rcond=None)[0]
        if (found >= 0).all():
            return found
        kept &= found > 0
