"""Selectors by name: `query_attention(0.2)` means the same rule in a request, on the command line and in results."""

import re
from collections.abc import Mapping
from dataclasses import Field, fields
from types import MappingProxyType
from typing import Any

from agentkv.errors import InvalidRequest
from agentkv.screening.selectors.budget import BudgetedSelector
from agentkv.screening.selectors.draft_reading import DraftReading
from agentkv.screening.selectors.propagated_attention import PropagatedAttention
from agentkv.screening.selectors.query_attention import QueryAttention
from agentkv.screening.selectors.random_rows import RandomRows
from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv.screening.selectors.relay import Relay
from agentkv.screening.selectors.repair_all import RepairAll
from agentkv.screening.selectors.repair_boundary import RepairBoundary
from agentkv.screening.selectors.repair_none import RepairNone
from agentkv.screening.selectors.tail_rows import TailRows
from agentkv.screening.selectors.value_deviation import ValueDeviation

SELECTORS: Mapping[str, type[BudgetedSelector]] = MappingProxyType(
    {
        "reading_change": ReadingChange,
        "draft_reading": DraftReading,
        "repair_none": RepairNone,
        "repair_all": RepairAll,
        "repair_boundary": RepairBoundary,
        "tail_rows": TailRows,
        "query_attention": QueryAttention,
        "propagated_attention": PropagatedAttention,
        "value_deviation": ValueDeviation,
        "relay": Relay,
        "random_rows": RandomRows,
    }
)

_CALL = re.compile(r"\s*(?P<rule>\w+)\s*(?:\((?P<arguments>[^()]*)\))?\s*")
_ARGUMENT = re.compile(r"\s*(?:(?P<key>\w+)\s*=)?\s*(?P<number>[-+.0-9eE]+)\s*")


def parse_selector(text: str, rules: Mapping[str, type[BudgetedSelector]] = SELECTORS) -> BudgetedSelector:
    """The selector that `text` names: `RULE`, `RULE(NUMBER, ...)` or `RULE(FIELD=NUMBER, ...)`, RULE one of `rules`.

    Arguments left out take the rule's defaults; `parse_selector(selector.name) == selector`.

    Raises:
        InvalidRequest: no such rule or argument; the message lists the rules that there are.
    """
    call = _CALL.fullmatch(text)
    rule = rules.get(call["rule"]) if call else None
    if call is None or rule is None:
        raise _refusal(text, "there is no such rule", rules)
    try:
        return rule(**_arguments(call["arguments"] or "", _parameters(rule)))
    except ValueError as error:
        raise _refusal(text, str(error), rules) from error


def known_selectors(rules: Mapping[str, type[BudgetedSelector]] = SELECTORS) -> tuple[str, ...]:
    """The rules with their parameters and defaults, as shown to users."""
    return tuple(
        f"{name}({', '.join(f'{f.name}={f.default}' for f in _parameters(rule))})" if _parameters(rule) else name
        for name, rule in rules.items()
    )


def _parameters(rule: type[Any]) -> tuple[Field[Any], ...]:
    return fields(rule)


def _arguments(text: str, parameters: tuple[Field[Any], ...]) -> dict[str, int | float]:
    """Parse a comma-separated list into keyword arguments; each has the type of its parameter's default."""
    arguments: dict[str, int | float] = {}
    defaults: dict[str, Any] = {parameter.name: parameter.default for parameter in parameters}
    for index, item in enumerate(text.split(",") if text.strip() else ()):
        argument = _ARGUMENT.fullmatch(item)
        if argument is None:
            raise ValueError(f"argument {item.strip()!r} is not a number")
        if argument["key"] is None and index >= len(parameters):
            raise ValueError(f"it takes {len(parameters)} arguments, not {index + 1}")
        key = argument["key"] or parameters[index].name
        if key not in defaults or key in arguments:
            raise ValueError(f"argument {key!r} is given twice" if key in arguments else f"it has no argument {key!r}")
        arguments[key] = type(defaults[key])(argument["number"])
    return arguments


def _refusal(text: str, reason: str, rules: Mapping[str, type[BudgetedSelector]]) -> InvalidRequest:
    known = ", ".join(known_selectors(rules))
    return InvalidRequest(f"selector {text!r} can't be used: {reason}. Give one of {known}.", param="selector")
