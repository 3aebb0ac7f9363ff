"""What a chat's time to first token goes into before its rows run: tokenising, recognition, planning, looking."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agentkv.service import Service
from agentkv_engine.runner.observer import LiveObservation

PHASES = ("tokenise", "recognise", "plan", "look")
"""The first three are ours to keep small. A look is attention of traced layers: the rule's own work on tensors."""

LOOKS = ("attention", "reading", "value_deviation", "value_turn")


@contextmanager
def timed_phases(service: Service) -> Iterator[dict[str, float]]:
    """Seconds by phase, added up while the block runs and the service answers one chat at a time."""
    spent: defaultdict[str, float] = defaultdict(float)
    admission = service._engine._scheduler._admission
    wrapped = [
        (service._prompts, "write", "tokenise"),
        (service, "_place_spans", "recognise"),
        (admission, "admit", "plan"),
        (admission, "finish_probe", "plan"),
        *((LiveObservation, name, "look") for name in LOOKS),
    ]
    plain = [(owner, name, getattr(owner, name)) for owner, name, _ in wrapped]
    for owner, name, phase in wrapped:
        setattr(owner, name, _timed(getattr(owner, name), phase, spent))
    try:
        yield spent
    finally:
        for owner, name, call in plain:
            setattr(owner, name, call)


def _timed(call: Callable[..., Any], phase: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Looks happen while a plan is made: their time is taken from the plan's."""

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            seconds = time.perf_counter() - started
            spent[phase] += seconds
            if phase == "look":
                spent["plan"] -= seconds

    return timed
