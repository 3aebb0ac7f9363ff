"""OpenAI's error envelope on every answer that is not a success.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

`type` is `invalid_request_error` for the caller's mistakes (4xx) and `server_error` for ours (5xx); `code` is the short
machine-readable word. Internal errors are logged with their trace and answered without it.
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


def from_service_error(error: Exception) -> ApiError:
    """What a client is told of `error`; anything unexpected goes to the log, and is told without detail."""
    match error:
        case ApiError():
            return error
        case InvalidRequest():
            return ApiError(400, str(error), param=error.param, code=error.code or "invalid_value")
        case ClientDisconnect():
            return client_gone()
        case ServiceClosed():
            return ApiError(503, str(error) or "the service is closed", code="service_closed")
    logger.error("unexpected error while answering a request", exc_info=error)
    return ApiError(500, "internal error: see the server's log", code="internal_error")


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


async def _unexpected(_: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the server logs the raised error
    return ApiError(500, "internal error: see the server's log", code="internal_error").response()
