"""From what a plan leaves unrepaired to the error of the answer: one curve a rule, measured on one model.

A curve says below which KL divergence from full prefill (mean over a reply, in nats) a share of the prompts stayed
whose plans left so much. `agentkv calibrate` measures it; nothing here imports torch.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from agentkv.errors import ConfigError

_FORMAT = 2
_ENDS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A step function that never falls: up to `left[n]`, the estimate is `kl[n]`.

    Attributes:
        left: ascending; beyond the last one nothing is known.
        kl: never falling, in nats.
        quantile: share of the prompts that stayed below.
        prompts: how many were measured.
    """

    left: tuple[float, ...]
    kl: tuple[float, ...]
    quantile: float
    prompts: int

    def __post_init__(self) -> None:
        ascends = all(a < b for a, b in pairwise(self.left)) and all(a <= b for a, b in pairwise(self.kl))
        if len(self.left) != len(self.kl) or not self.left or not ascends:
            raise ValueError("a curve has as many values of left as of kl, one or more, both ascending")

    def estimate(self, left: float) -> float | None:
        """KL for what is left: 0 for nothing, None beyond what was measured."""
        if left <= 0:
            return 0.0
        if not isfinite(left):
            return None
        step = bisect_left(self.left, left)
        return self.kl[step] if step < len(self.kl) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The curves of one model.

    Attributes:
        model: its fingerprint.
        curves: by rule, whatever its ratio.
        trace_layers: layers that were traced, which `reading_change` sums over; None where no rule asks traces.
        break_even: by device (`cpu`, `cuda`), the fewest reused tokens from which on the server's rule was faster than
            full prefill there.
        measured: what they come from and how they did on tasks that they were not fitted to, for readers.
    """

    model: str
    curves: Mapping[str, Curve]
    trace_layers: int | None = None
    break_even: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def estimate(self, rule: str, left: float | None) -> float | None:
        """Estimated KL for what a plan of this rule (its name, with or without parameters) left; None where unknown."""
        curve = self.curves.get(rule.partition("(")[0])
        return None if curve is None or left is None else curve.estimate(left)

    def least(self, rule: str) -> float:
        """The lowest estimate for a plan of this rule that leaves anything. Raises KeyError where there is no curve."""
        return self.curves[rule.partition("(")[0]].kl[0]

    def save(self, path: Path) -> None:
        """Write it as JSON. Raises ConfigError where the file can't be written."""
        try:
            path.write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"can't write the calibration {path}: {error}. Give a file in a folder that is there."
            ) from error

    @classmethod
    def load(cls, path: Path, model: Path) -> Calibration:
        """Read the calibration of this model directory.

        Raises:
            ConfigError: no such file, no calibration, or that of another model.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']}, not {_FORMAT}")
            curves = {rule: _curve(each) for rule, each in content["curves"].items()}
            calibration = cls(
                model=content["model"],
                curves=curves,
                trace_layers=content["trace_layers"],
                break_even={device: int(count) for device, count in content.get("break_even", {}).items()},
                measured=content["measured"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"can't read the calibration {path}: {error}. Make one: agentkv calibrate --out {path}"
            ) from error
        if calibration.model != fingerprint(model):
            raise ConfigError(
                f"the calibration {path} is not of the model {model}: make one, agentkv calibrate --out {path}"
            )
        return calibration


def _curve(content: Mapping[str, Any]) -> Curve:
    return Curve(
        left=tuple(map(float, content["left"])),
        kl=tuple(map(float, content["kl"])),
        quantile=float(content["quantile"]),
        prompts=int(content["prompts"]),
    )


def fit_curve(left: Sequence[float], kl: Sequence[float], *, quantile: float = 0.9, fewest: int = 12) -> Curve:
    """Isotonic quantile regression of KL over what is left, by pooling adjacent violators.

    The minimiser of the pinball loss over functions that never fall: neighbours are pooled until the pools' quantiles
    ascend. A quantile is the same on a logarithmic scale, so nothing is lost where KL spans many powers of ten.

    Args:
        left, kl: one each a prompt.
        quantile: share of a pool's prompts that its value is not below.
        fewest: prompts of a pool, at least: a quantile of fewer says little.

    Raises:
        ValueError: there are fewer prompts than that.
    """
    if len(left) < fewest:
        raise ValueError(f"{len(left)} prompts are too few for a curve: measure {fewest} or more")
    order = np.argsort(np.asarray(left, np.float64), kind="stable")
    x, y = np.asarray(left, np.float64)[order], np.asarray(kl, np.float64)[order]
    pools: list[tuple[int, int]] = []
    for start, end in _groups(x, fewest):
        pools.append((start, end))
        while len(pools) > 1 and _value(y, pools[-2], quantile) >= _value(y, pools[-1], quantile):
            pools[-2:] = [(pools[-2][0], pools[-1][1])]
    return Curve(
        left=tuple(float(x[end - 1]) for _, end in pools),
        kl=tuple(_value(y, pool, quantile) for pool in pools),
        quantile=quantile,
        prompts=len(x),
    )


def _groups(x: np.ndarray, fewest: int) -> list[tuple[int, int]]:
    """Stretches of at least so many values, none of which ends between equal ones."""
    groups: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(x) + 1):
        if end == len(x) or (end - start >= fewest and x[end] > x[end - 1]):
            groups.append((start, end))
            start = end
    if len(groups) > 1 and groups[-1][1] - groups[-1][0] < fewest:
        groups[-2:] = [(groups[-2][0], groups[-1][1])]
    return groups


def _value(y: np.ndarray, pool: tuple[int, int], quantile: float) -> float:
    return float(np.quantile(y[slice(*pool)], quantile, method="higher"))


def fingerprint(model: Path) -> str:
    """Tells model directories apart without reading all their weights: configuration, sizes, both ends of each file."""
    digest = sha256()
    for path in sorted((model / "config.json", *model.glob("*.safetensors"))):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(_ENDS))
                file.seek(max(size - _ENDS, 0))
                digest.update(file.read(_ENDS))
    return digest.hexdigest()[:16]
