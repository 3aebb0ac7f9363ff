"""agentkv's errors as LangChain's: each is both, so that either can be caught, and retries and fallbacks know it.

`SummarizationMiddleware` looks for `ContextOverflowError`, `ModelRetryMiddleware` for `is_retryable`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from agentkv.errors import (
    AgentKVError,
    ContextTooLong,
    EngineRestarting,
    InvalidRequest,
    RemoteError,
    ServiceClosed,
    TemplateRefused,
)


class AgentKVContextOverflowError(ContextTooLong, ContextOverflowError):
    """The prompt has more tokens than can be served."""


class AgentKVTemplateError(TemplateRefused, ModelInvalidRequestError):
    """The model's chat template refuses the messages."""


class AgentKVInvalidRequestError(InvalidRequest, ModelInvalidRequestError):
    """A request that can't be honoured."""


class AgentKVEngineRestartingError(EngineRestarting, ModelAPIError):
    """The engine lost what it was computing and starts again."""


class AgentKVServiceClosedError(ServiceClosed, ModelAPIError):
    """The service stopped or its engine failed."""


class AgentKVAuthenticationError(RemoteError, ModelAuthenticationError):
    """The server does not know the key (401)."""


class AgentKVPermissionDeniedError(RemoteError, ModelPermissionDeniedError):
    """The key may not do this (403)."""


class AgentKVModelNotFoundError(RemoteError, ModelNotFoundError):
    """The server serves no such model (404)."""


class AgentKVRateLimitError(RemoteError, ModelRateLimitError):
    """The key runs as much as it may (429)."""


class AgentKVTimeoutError(RemoteError, ModelTimeoutError):
    """The server was silent for too long."""


class AgentKVConnectionError(RemoteError, ModelConnectionError):
    """The server can't be reached, or the connection broke."""


class AgentKVServerError(RemoteError, ModelAPIError):
    """Any other answer of the server that is no success."""


_BY_STATUS = {
    401: AgentKVAuthenticationError,
    403: AgentKVPermissionDeniedError,
    404: AgentKVModelNotFoundError,
    408: AgentKVTimeoutError,
    429: AgentKVRateLimitError,
    504: AgentKVTimeoutError,
}
_BY_CODE = {
    "connection_broken": AgentKVConnectionError,
    "incomplete": AgentKVConnectionError,
    "timeout": AgentKVTimeoutError,
    "unreachable": AgentKVConnectionError,
}


@contextmanager
def model_errors() -> Iterator[None]:
    """Raise agentkv's errors as LangChain's."""
    try:
        yield
    except AgentKVError as error:
        raise as_model_error(error) from error


def as_model_error(error: AgentKVError) -> AgentKVError:
    """The same error, which is also one of LangChain's; one without a counterpart stays as it is."""
    match error:
        case ModelError():
            return error
        case ContextTooLong():
            return AgentKVContextOverflowError(str(error))
        case TemplateRefused():
            return AgentKVTemplateError(str(error))
        case InvalidRequest():
            return AgentKVInvalidRequestError(str(error), param=error.param, code=error.code)
        case EngineRestarting():
            return AgentKVEngineRestartingError(str(error))
        case ServiceClosed():
            return AgentKVServiceClosedError(str(error))
        case RemoteError():
            kind = _BY_STATUS.get(error.status or 0) or _BY_CODE.get(error.code or "", AgentKVServerError)
            return kind(str(error), status=error.status, code=error.code)
    return error


def is_retryable(error: BaseException) -> bool:
    """Whether asking again may succeed."""
    return isinstance(error, ModelError) and error.is_retryable
