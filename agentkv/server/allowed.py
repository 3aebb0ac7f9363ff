"""The methods of a path: several routes may share one, and a router that finds none of them names but the first's."""

from collections.abc import Mapping
from typing import Any


def allowed_methods(paths: Mapping[str, Mapping[str, Any]], path: str) -> tuple[str, ...]:
    """The methods that `/openapi.json` tells of a path; none where it tells nothing of it.

    Args:
        paths: of the schema, by template.
        path: as it was asked for. A template without parameters wins over one that has them.
    """
    given = path.split("/")
    fitting = [template for template in paths if _fits(template.split("/"), given)]
    best = min(fitting, key=lambda template: template.count("{"), default=None)
    return () if best is None else tuple(sorted(method.upper() for method in paths[best]))


def _fits(template: list[str], given: list[str]) -> bool:
    same_length = len(template) == len(given)
    return same_length and all(
        part.startswith("{") or part == there for part, there in zip(template, given, strict=True)
    )
