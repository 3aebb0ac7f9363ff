"""OpenAI's error envelope on every answer that is not a success.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

`type` is `invalid_request_error` for the caller's mistakes (4xx) and `server_error` for ours (5xx); `code` is the short
machine-readable word. Internal errors are logged with their trace and answered without it: the request's id, which
every answer has in `x-request-id`, leads from one to the other.
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from agentkv.errors import AgentKVError, EngineRestarting, InvalidRequest, ServiceClosed
from agentkv.server.allowed import allowed_methods
from agentkv.server.request_id import HEADER, request_id

logger = logging.getLogger(__name__)

MOST_ERRORS = 1000
"""Of one body: what pydantic found is told in its own objects, all or none, and a large body may have millions."""


class ApiError(Exception):
    """An answer other than success, as it goes over the wire.

    Attributes:
        status: HTTP status.
        param: the request field that is wrong, where one is.
        code: short machine-readable word.
        headers: extra response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    def envelope(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.envelope(), status_code=self.status, headers=self.headers)


ANTHROPIC_PATH = "/v1/messages"
"""Routes under it answer errors as Anthropic does."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_envelope(error: ApiError) -> dict[str, Any]:
    """The JSON body of an error of `/v1/messages`."""
    fallback = "api_error" if error.status >= 500 else "invalid_request_error"
    told = {"type": _ANTHROPIC_TYPES.get(error.status, fallback), "message": str(error)}
    return {"type": "error", "error": told, "request_id": request_id()}


def error_response(request: Request, error: ApiError) -> JSONResponse:
    """The HTTP answer, in the envelope of the route."""
    if not request.url.path.startswith(ANTHROPIC_PATH):
        return error.response()
    return JSONResponse(anthropic_envelope(error), status_code=error.status, headers=error.headers)


def model_not_found(asked: str, served: str) -> ApiError:
    """The answer to a model that is not here."""
    return ApiError(
        404, f"the model {asked!r} is not served here: ask for {served!r}", param="model", code="model_not_found"
    )


def client_gone() -> ApiError:
    """The answer that nobody reads: nginx's 499."""
    return ApiError(499, "the client closed the connection", code="client_closed_request")


def internal_error(name: str) -> ApiError:
    """What a client is told of a fault of ours: which request it was, and nothing of its inside."""
    return ApiError(500, f"internal error: see request {name} in the server's log", code="internal_error")


def from_service_error(error: Exception) -> ApiError:
    """What a client is told of `error`; anything unexpected goes to the log, and is told without detail."""
    match error:
        case ApiError():
            return error
        case InvalidRequest(code="segment_not_found"):
            return ApiError(404, str(error), param=error.param, code=error.code)
        case InvalidRequest(code="pin_budget_exceeded"):
            return ApiError(429, str(error), param=error.param, code=error.code, headers={"Retry-After": "60"})
        case InvalidRequest():
            return ApiError(400, str(error), param=error.param, code=error.code or "invalid_value")
        case ClientDisconnect():
            return client_gone()
        case EngineRestarting():
            return ApiError(503, str(error), code="engine_restarting", headers={"Retry-After": "10"})
        case ServiceClosed():
            return ApiError(503, str(error) or "the service is closed", code="service_closed")
    logger.error("unexpected error while answering request %s", request_id(), exc_info=error)
    return internal_error(request_id())


def from_validation_error(error: ValidationError | RequestValidationError, body: bytes = b"") -> ApiError:
    """The first thing that pydantic found wrong, with the field's path as OpenAI writes it: `messages[0].role`.

    Args:
        error: pydantic's.
        body: what was read, so that the path names fields that are there.
    """
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        first["loc"] = first["loc"][1:]  # FastAPI's own word for where it stood: query, path
    elif error.error_count() > MOST_ERRORS:
        message = f"the request body has {error.error_count()} fields or items that can't be taken: send those that can"
        return ApiError(400, message, code="invalid_value")
    else:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the request body is not valid JSON: {first['msg']}", code="invalid_json")
    missing = first["type"] == "missing"
    path = _path(first["loc"], body, missing=missing)
    code = "missing_required_parameter" if missing else "invalid_value"
    return ApiError(400, f"{path or 'request body'}: {first['msg']}", param=path or None, code=code)


def _path(places: Sequence[str | int], body: bytes, *, missing: bool) -> str:
    """The path without the parts that are pydantic's own: the names of a union's members."""
    here = _parsed(body)
    is_known = bool(here)
    path = ""
    for rank, place in enumerate(places):
        if _has(here, place):
            here = here[place]
        elif is_known and not (missing and rank == len(places) - 1):
            continue
        path += f"[{place}]" if isinstance(place, int) else f".{place}" if path else str(place)
    return path


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None


def _has(here: Any, place: str | int) -> bool:
    return isinstance(place, int) if isinstance(here, list) else isinstance(here, dict) and place in here


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of `app` an envelope: ours, FastAPI's, unknown routes and methods, and bugs."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return error_response(request, from_service_error(error))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(request, from_validation_error(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}"
        code = HTTPStatus(error.status_code).name.lower()
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            methods = allowed_methods(app.openapi()["paths"], request.url.path)
            headers |= {"Allow": ", ".join(methods)} if methods else {}
        return error_response(request, ApiError(error.status_code, what, code=code, headers=headers))

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(AgentKVError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, _unexpected)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette answers here from outside all middleware, and raises the error once more, for the log.
    name = request.state.request_id
    logger.error("request %s failed: %s", name, type(error).__name__)
    answer = error_response(request, internal_error(name))
    answer.headers[HEADER.decode("ascii")] = name
    return answer
