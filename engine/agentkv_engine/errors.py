"""Errors of the engine. Each names the value that was wrong and the remedy.

EngineError
├── CheckpointError          a model directory that can't be loaded
│   ├── UnsupportedModel     an architecture, RoPE type or quantisation that this engine does not run
│   └── MissingTensor        a weight that the architecture needs is not in the files
├── DeviceUnavailable        a device that is not here
├── OutOfMemory              memory of the device or the host that can't be had
├── PipelineRefused          stages that can't be made of this model, or with these settings
├── RequestRefused           a request that can never run
│   └── PromptTooLong        more tokens than the context length or the KV memory can hold
├── ConstraintFailed         a request's constraint raised, or allows no token
├── RunnerLost               processes that compute are gone, with all KV: they are started again
├── SelectorFailed           a selector raised, or its probe or plan breaks the contract
└── UnknownHandle            a resident or request that is not (or no longer) there
"""


class EngineError(Exception):
    """Base of the engine's errors."""


class CheckpointError(EngineError):
    """A model directory that can't be loaded."""


class UnsupportedModel(CheckpointError):
    """The checkpoint asks for something this engine does not run."""


class MissingTensor(CheckpointError):
    """A weight that the architecture needs is not in the checkpoint's files."""


class DeviceUnavailable(EngineError):
    """A device that is not here."""


class OutOfMemory(EngineError):
    """Memory of the device or the host that can't be had."""


class PipelineRefused(EngineError):
    """Stages that can't be made of this model, or with these settings."""


class RequestRefused(EngineError):
    """A request that can never run as it is.

    Attributes:
        param: the request's or its sampling's field that is wrong, where it is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(RequestRefused):
    """The prompt has more tokens than can ever be served.

    Attributes:
        num_tokens: tokens of the prompt.
        limit: the most tokens that would be accepted.
    """

    def __init__(self, num_tokens: int, limit: int, what: str, remedy: str) -> None:
        super().__init__(f"the prompt has {num_tokens} tokens, but {what} holds at most {limit}: {remedy}")
        self.num_tokens = num_tokens
        self.limit = limit


class ConstraintFailed(EngineError):
    """A request's constraint raised, or allows no token."""


class RunnerLost(EngineError):
    """Processes that compute are gone, with all KV and what was under way: they are started again."""


class SelectorFailed(EngineError):
    """A selector raised, or its probe or plan breaks the contract."""


class UnknownHandle(EngineError):
    """A resident or request that is not (or no longer) there."""
