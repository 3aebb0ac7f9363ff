"""The rules compared: full prefill, and selectors by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentkv.screening.selectors.registry import parse_selector
from agentkv_engine.reuse import Selector

FULL = "full"
"""Name of the reference: full prefill, which reads no kept KV."""

DEFAULT_RULES = (
    "repair_none",
    "repair_boundary(16)",
    "tail_rows(16)",
    "query_attention(0.2)",
    "random_rows(0.1)",
)
"""Rules that are always compared: careless reuse, EPIC's, the cheap baseline, ProphetKV's, the lot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A rule under comparison.

    Attributes:
        name: the rule with its parameters, as in results.
        selector: chooses the repaired rows.
    """

    name: str
    selector: Selector


def make_arms(rules: Iterable[str]) -> tuple[Arm, ...]:
    """One arm a rule; a rule that is named twice counts once.

    Raises:
        InvalidRequest: there is no such rule; the message lists those that there are.
    """
    selectors = [parse_selector(rule) for rule in rules]
    return tuple({each.name: Arm(name=each.name, selector=each) for each in selectors}.values())
