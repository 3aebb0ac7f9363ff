"""agentkv: keep the KV of every message once, and let every agent read it where it lies.

`import agentkv` stays light: torch is loaded when a `Service` is made.
"""

from agentkv.api import ChatDelta, ChatMessage, ChatRequest, ChatService, ChatStream, Reuse, ReuseUsage, Usage
from agentkv.errors import (
    AgentKVError,
    ConfigError,
    EngineRestarting,
    InvalidRequest,
    ModelError,
    RemoteError,
    ServiceClosed,
)

__version__ = "0.1.0"

__all__ = [
    "AgentKVError",
    "ChatDelta",
    "ChatMessage",
    "ChatRequest",
    "ChatService",
    "ChatStream",
    "ConfigError",
    "EngineRestarting",
    "InvalidRequest",
    "ModelError",
    "RemoteError",
    "Reuse",
    "ReuseUsage",
    "ServiceClosed",
    "Usage",
]
