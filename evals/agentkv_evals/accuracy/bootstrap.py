"""Paired bootstrap intervals: how sure a difference between two arms on the same items is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float


def paired(differences: Sequence[float], *, seed: int = 0, resamples: int = _RESAMPLES) -> Interval:
    """Percentile bootstrap of the mean of paired differences, one an item; the same seed, the same interval.

    Raises:
        ValueError: there are no differences.
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        raise ValueError("no differences: give at least one pair")
    draws = np.random.default_rng(seed)
    at_once = max(_CHUNK // len(values), 1)
    means: list[np.ndarray] = []
    for done in range(0, resamples, at_once):
        count = min(at_once, resamples - done)
        means.append(values[draws.integers(0, len(values), (count, len(values)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))
