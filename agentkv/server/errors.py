"""OpenAI's error envelope on every answer that is not a success.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

`type` is `invalid_request_error` for the caller's mistakes (4xx) and `server_error` for ours (5xx); `code` is the short
machine-readable word. Internal errors are logged with their trace and answered without it: the request's id, which
every answer has in `x-request-id`, leads from one to the other.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from agentkv.errors import AgentKVError, InvalidRequest, ServiceClosed
from agentkv.server.request_id import HEADER, request_id

logger = logging.getLogger(__name__)


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
        case ServiceClosed():
            return ApiError(503, str(error) or "the service is closed", code="service_closed")
    logger.error("unexpected error while answering request %s", request_id(), exc_info=error)
    return internal_error(request_id())


def from_validation_error(error: ValidationError | RequestValidationError) -> ApiError:
    """The first thing that pydantic found wrong, with the field's path as OpenAI writes it: `messages[0].role`."""
    first = error.errors()[0]
    path = ""
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the request body is not valid JSON: {first['msg']}", code="invalid_json")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{path or 'request body'}: {first['msg']}", param=path or None, code=code)


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of `app` an envelope: ours, FastAPI's, unknown routes and methods, and bugs."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return from_service_error(error).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation_error(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}"
        code = HTTPStatus(error.status_code).name.lower()
        return ApiError(error.status_code, what, code=code, headers=error.headers).response()

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(AgentKVError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, _unexpected)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette answers here from outside all middleware, and raises the error once more, for the log.
    name = request.state.request_id
    logger.error("request %s failed: %s", name, type(error).__name__)
    answer = internal_error(name).response()
    answer.headers[HEADER.decode("ascii")] = name
    return answer
