"""What is compared: budgets of a step, and how many steps are under way."""

from dataclasses import dataclass

from agentkv.errors import ConfigError
from agentkv_engine.scheduler.budget import BudgetPolicy, FixedBudget
from agentkv_engine.scheduler.token_throttling import TokenThrottling

CHUNKS = (256, 512, 1024, 2048, 4096)
THROTTLED = ("throttling", "no-waiting-term", "no-kv-term", "throttling-blocking", "throttling-ahead")
NAMES = (*(f"fixed-{chunk}" for chunk in CHUNKS), *THROTTLED)
"""All arms, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of the comparison.

    Attributes:
        under_way: steps that are ordered before the first of them has come back.
    """

    name: str
    budget: BudgetPolicy
    under_way: int


def arm(name: str, num_stages: int) -> Arm:
    """An arm by name. Raises ConfigError: there is none of that name."""
    kind, _, chunk = name.partition("-")
    if kind == "fixed" and chunk.removesuffix("-ahead").isdigit() and int(chunk.removesuffix("-ahead")) > 0:
        ahead = chunk.endswith("-ahead")
        return Arm(name=name, budget=FixedBudget(int(chunk.removesuffix("-ahead"))), under_way=num_stages + ahead)
    policies = {
        "throttling": TokenThrottling(num_stages=num_stages),
        "no-waiting-term": TokenThrottling(num_stages=num_stages, waiting_term=False),
        "no-kv-term": TokenThrottling(num_stages=num_stages, kv_term=False),
        "throttling-blocking": TokenThrottling(num_stages=num_stages),
        "throttling-ahead": TokenThrottling(num_stages=num_stages + 1),
    }
    if name not in policies:
        raise ConfigError(f"there is no arm {name!r}: take fixed-ROWS, fixed-ROWS-ahead, {', '.join(policies)}")
    under_way = {"throttling-blocking": 1, "throttling-ahead": num_stages + 1}.get(name, num_stages)
    return Arm(name=name, budget=policies[name], under_way=under_way)
