"""What a request's owner is told when the engine ends it with an error."""

from agentkv.errors import AgentKVError, EngineRestarting, InvalidRequest
from agentkv_engine.errors import EngineError, OutOfMemory, RunnerLost


def failure_of(error: EngineError, *, param: str | None = None) -> AgentKVError:
    """The middleware's error for one of the engine's.

    Args:
        error: that ended a request.
        param: the request field that is wrong, where the request is at fault.
    """
    if isinstance(error, (OutOfMemory, RunnerLost)):
        return EngineRestarting(str(error))
    return InvalidRequest(str(error), param=param)
