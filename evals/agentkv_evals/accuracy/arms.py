"""The arms compared: full prefill, exact prefixes, and selectors by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from agentkv.errors import InvalidRequest
from agentkv.screening.selectors.budget import BudgetedSelector
from agentkv.screening.selectors.registry import SELECTORS, parse_selector
from agentkv_engine.reuse import Selector
from agentkv_evals.accuracy.oracle import Oracle

FULL = "full"
"""Name of the reference: full prefill, which reads no kept KV."""

EXACT = "exact_prefix"
"""Name of the arm that reads exact prefixes only."""

OURS = "reading_change"
"""The rule that is swept over `RATIOS` unless another is named."""

RATIOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)

PEERS = (
    EXACT,
    "repair_none",
    "repair_boundary(16)",
    "tail_rows(16)",
    "value_deviation(0.16)",
    "relay",
    "query_attention(0.2)",
    "random_rows(0.1)",
    "oracle(0.1)",
)
"""Always compared, at their published settings: exact prefixes, careless reuse, EPIC's, the cheap baseline,
CacheBlend's, RelayCaching's, ProphetKV's, the lot, and what could be known only after full prefill."""

RULES: dict[str, type[BudgetedSelector]] = {**SELECTORS, "oracle": Oracle}
"""The users' rules, and those that serve for comparison only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to read kept KV.

    Attributes:
        name: the rule with its parameters, as in results.
        selector: chooses the repaired rows; None reads exact prefixes only.
    """

    name: str
    selector: Selector | None


def make_arms(rules: Iterable[str], ratios: Sequence[float] = ()) -> tuple[Arm, ...]:
    """One arm a rule; a rule that is named twice counts once.

    Args:
        rules: `RULE`, `RULE(NUMBER, ...)` or `exact_prefix`.
        ratios: a rule that is named without arguments and has a `ratio` gives one arm for each of these.

    Raises:
        InvalidRequest: there is no such rule; the message lists those that there are.
    """
    arms = [arm for rule in rules for arm in _arms(rule.strip(), ratios)]
    return tuple({arm.name: arm for arm in arms}.values())


def parse_ratios(text: str | None) -> tuple[float, ...]:
    """A list like `0.02,0.1`, or `RATIOS` for None. Raises InvalidRequest for what is no share."""
    if text is None:
        return RATIOS
    try:
        ratios = tuple(float(part) for part in text.split(","))
    except ValueError:
        ratios = (-1.0,)
    if not all(0 <= ratio <= 1 for ratio in ratios):
        raise InvalidRequest(f"--ratio {text!r}: give shares from 0 to 1, e.g. 0.05,0.1", param="ratio")
    return ratios


def _arms(rule: str, ratios: Sequence[float]) -> list[Arm]:
    if rule == EXACT:
        return [Arm(name=EXACT, selector=None)]
    selector: Any = parse_selector(rule, RULES)
    swept = "(" not in rule and any(field.name == "ratio" for field in fields(selector))
    selectors = [replace(selector, ratio=ratio) for ratio in ratios] if swept and ratios else [selector]
    return [Arm(name=each.name, selector=each) for each in selectors]
