"""A rule that deepens its plan until the estimate of its error is low enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from torch import Tensor

from agentkv.errors import ConfigError
from agentkv.screening.calibration import Calibration
from agentkv.screening.selectors.budget import BudgetedSelector, inherits_error, num_repairable
from agentkv.screening.selectors.repair_all import RepairAll
from agentkv_engine.reuse import Observation, Probe, RepairPlan, ReuseView

_GROWTH, _SMALLEST = 1.5, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """Asks a rule for plans of growing ratio and takes the first whose estimated KL is at most `target`.

    Where none is, or where nothing is known of the rows, everything is repaired: full prefill, before the first token;
    where that is sure beforehand, without a look.

    Attributes:
        inner: the rule, whose ratio is the smallest that is spent.
        target: most KL divergence from full prefill, a mean over the reply in nats.
        calibration: estimates it from what the plan leaves.

    Raises:
        ConfigError: the rule has no ratio, or the calibration no curve for it.
    """

    inner: BudgetedSelector
    target: float
    calibration: Calibration = field(repr=False)

    def __post_init__(self) -> None:
        rule = self.inner.name.partition("(")[0]
        if (
            not any(each.name == "ratio" for each in fields(cast(Any, self.inner)))
            or rule not in self.calibration.curves
        ):
            known = ", ".join(sorted(self.calibration.curves)) or "none"
            raise ConfigError(f"no error can be estimated for the rule {rule}: the calibration knows {known}")

    @property
    def name(self) -> str:
        """See `Selector.name`."""
        return f"until({self.target}, {self.inner.name})"

    def budget(self, view: ReuseView) -> int:
        """See `BudgetedSelector.budget`: what it starts with; that it may deepen is not foreseen."""
        return RepairAll().budget(view) if self._is_hopeless(view) else self.inner.budget(view)

    def probe(self, view: ReuseView) -> Probe | None:
        """See `Selector.probe`: that of the smallest ratio at which there is a choice."""
        if self._is_hopeless(view):
            return None
        probes = (rule.probe(view) for rule in self._deeper())
        return next((probe for probe in probes if probe is not None), None)

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan | Probe:
        """See `Selector.plan`: the first plan that will do."""
        if self._is_hopeless(view):
            return RepairAll().plan(view, None)
        seen = None if observation is None else cast(Observation, _Remembered(observation))
        for rule in self._deeper():
            if seen is None or rule.probe(view) is not None:
                answer = rule.plan(view, seen)
                if isinstance(answer, Probe) or self._will_do(answer):
                    return answer
        return RepairAll().plan(view, None)

    def _is_hopeless(self, view: ReuseView) -> bool:
        """Whether no plan that leaves anything can do: its error can't be told, or the least estimate is too high."""
        least = self.calibration.least(self.inner.name)
        return inherits_error(view) or (num_repairable(view) > 0 and least > self.target)

    def _will_do(self, plan: RepairPlan) -> bool:
        estimate = self.calibration.estimate(self.inner.name, plan.left)
        return estimate is not None and estimate <= self.target

    def _deeper(self) -> Iterator[BudgetedSelector]:
        """The rule at growing ratios, below 1."""
        rule: Any = self.inner
        ratio = rule.ratio
        while ratio < 1:
            yield replace(rule, ratio=ratio)
            ratio = max(ratio * _GROWTH, _SMALLEST)


class _Remembered:
    """An observation that looks only once at what it is asked again."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._seen: dict[tuple[object, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._observation, name)
        if not callable(asked):
            return asked

        def look(*arguments: Any) -> Any:
            key = (name, *map(_key, arguments))
            if key not in self._seen:
                self._seen[key] = asked(*arguments)
            return self._seen[key]

        return look


def _key(argument: Any) -> object:
    if isinstance(argument, Tensor):
        return tuple(argument.shape), argument.cpu().numpy().tobytes()
    return argument if argument is None or isinstance(argument, int) else tuple(argument)
