"""What is compared: budgets of a step, and how many steps are under way."""

from dataclasses import dataclass

from agentkv.errors import ConfigError
from agentkv_engine.scheduler.budget import BudgetPolicy, FixedBudget
from agentkv_engine.scheduler.token_throttling import TokenThrottling

CHUNKS = (256, 512, 1024, 2048, 4096)
THROTTLED = ("throttling", "no-waiting-term", "no-kv-term", "throttling-blocking")
NAMES = (*(f"fixed-{chunk}" for chunk in CHUNKS), *THROTTLED)
"""All arms, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of the comparison.

    Attributes:
        blocking: a step is ordered when the one before has come back, however many stages there are.
    """

    name: str
    budget: BudgetPolicy
    blocking: bool = False


def arm(name: str, num_stages: int) -> Arm:
    """An arm by name. Raises ConfigError: there is none of that name."""
    kind, _, chunk = name.partition("-")
    if kind == "fixed" and chunk.isdigit() and int(chunk) > 0:
        return Arm(name=name, budget=FixedBudget(int(chunk)))
    policies = {
        "throttling": TokenThrottling(num_stages=num_stages),
        "no-waiting-term": TokenThrottling(num_stages=num_stages, waiting_term=False),
        "no-kv-term": TokenThrottling(num_stages=num_stages, kv_term=False),
        "throttling-blocking": TokenThrottling(num_stages=num_stages),
    }
    if name not in policies:
        raise ConfigError(f"there is no arm {name!r}: take fixed-ROWS, {', '.join(policies)}")
    return Arm(name=name, budget=policies[name], blocking=name.endswith("blocking"))
