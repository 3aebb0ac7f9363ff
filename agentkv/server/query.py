"""Query parameters: what a route does not know is refused, so that a misspelt condition is not a missing one."""

from fastapi import Request
from fastapi.routing import APIRoute

from agentkv.server.errors import ApiError


async def only_known_parameters(request: Request) -> None:
    """A dependency of routes whose query parameters matter.

    Raises:
        ApiError: 400, a parameter that the route does not know, or one that is given twice.
    """
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params} if isinstance(route, APIRoute) else set[str]()
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            message = f"{name}: this route knows no such parameter; {_choices(known)}"
            raise ApiError(400, message, param=name, code="unknown_parameter")
        if name in seen:
            raise ApiError(400, f"{name} is given twice: give it once", param=name, code="invalid_value")
        seen.add(name)


def _choices(known: set[str]) -> str:
    return f"give some of {', '.join(sorted(known))}" if known else "it takes none"
