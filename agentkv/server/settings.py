"""What an operator sets of the HTTP server. The environment and the command line are read elsewhere, never here."""

from dataclasses import dataclass

from agentkv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Attributes:
        api_keys: keys that are let in, each a tenant of its own; none means no check and one tenant.
        max_body_bytes: largest request body; larger ones get 413.
        default_temperature: for requests that give none; OpenAI's clients expect 1.
        max_agent_labels: distinct agent labels shown in metrics; later ones are counted as `other`.
        shutdown_grace: seconds that running chats get to finish after SIGTERM.
        access_log: log one line a request.

    Raises:
        ConfigError: a value that can't be used.
    """

    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 2**20
    default_temperature: float = 1.0
    max_agent_labels: int = 64
    shutdown_grace: float = 30.0
    access_log: bool = True

    def __post_init__(self) -> None:
        if not all(key.strip() for key in self.api_keys):
            raise ConfigError("an API key is empty: give keys with at least one visible character, or none at all")
        if self.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes is {self.max_body_bytes}: give at least 1024, a chat needs some room")
        if not 0 <= self.default_temperature <= 2:
            raise ConfigError(f"default_temperature is {self.default_temperature}: give one between 0 and 2")
        if self.max_agent_labels < 1:
            raise ConfigError(f"max_agent_labels is {self.max_agent_labels}: give at least 1")
        if self.shutdown_grace < 0:
            raise ConfigError(f"shutdown_grace is {self.shutdown_grace}: give seconds, 0 or more")
