"""Errors of the middleware. Each names the value that was wrong and the remedy.

AgentKVError
├── ConfigError              a setting, model directory or file that can't be used
│   └── ModelError           a model directory that can't be served (no chat template, broken tokenizer, ...)
├── InvalidRequest           the caller's mistake: HTTP 400
│   ├── ContextTooLong       the prompt has more tokens than the model or the KV memory can hold
│   └── TemplateRefused      the model's chat template refuses these messages
├── EngineRestarting         the engine lost what it was computing and starts again: HTTP 503
├── ServiceClosed            the service stopped or its engine failed: HTTP 503
└── RemoteError              a server answered with an error, or not at all (client side)
"""


class AgentKVError(Exception):
    """Base of the middleware's errors."""


class ConfigError(AgentKVError):
    """A setting, model directory or file that can't be used."""


class ModelError(ConfigError):
    """A model directory that can't be served."""


class InvalidRequest(AgentKVError):
    """The caller's mistake.

    Attributes:
        param: the request field that is wrong, where one is.
        code: a short machine-readable word, as in OpenAI's error envelope.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextTooLong(InvalidRequest):
    """The prompt has more tokens than can be served."""

    def __init__(self, message: str, *, param: str = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class TemplateRefused(InvalidRequest):
    """The model's chat template refuses these messages; the message quotes the template's own words."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="messages", code="template_refused")


class EngineRestarting(AgentKVError):
    """The engine lost what it was computing for a request, for want of memory or because a process ended, and goes on:
    the same request may be sent anew."""


class ServiceClosed(AgentKVError):
    """The service stopped or its engine failed."""


class RemoteError(AgentKVError):
    """A server answered with an error, or not at all.

    Attributes:
        status: HTTP status, None when there was no answer.
        code: the envelope's code, where there is one.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
