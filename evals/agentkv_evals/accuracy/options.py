"""Lists on the command line, `a,b,c`, checked against what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from agentkv.errors import InvalidRequest

T = TypeVar("T")


def chosen(text: str | None, known: Sequence[T], option: str) -> list[T]:
    """The members of `known` that a comma-separated list names, in its order; all for None.

    Raises:
        InvalidRequest: a name that is not known; the message lists those that are.
    """
    if text is None:
        return list(known)
    by_name = {str(each): each for each in known}
    names = dict.fromkeys(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise InvalidRequest(
            f"{option} {text!r}: there is no {', '.join(map(repr, unknown))}. Give some of {', '.join(by_name)}.",
            param=option.lstrip("-"),
        )
    return [by_name[name] for name in names]
