"""What an operator sets of the HTTP server."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import ByteSize, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from agentkv.config import Settings
from agentkv.errors import ConfigError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServerSettings(Settings):
    """Settings of one server.

    Attributes:
        api_keys: keys that are let in, each a tenant of its own; none means no check and one tenant. In the environment
            separated by commas.
        api_key_file: more of them, one a line.
        metrics_key: the key with which `/metrics` may be read; None lets the API key in where there is but one (or
            everybody, where there is none), and nobody where there are several.
        tenant_salt: secret from which tenants are derived, for servers that share kept KV; None draws one.
        max_body_bytes: largest request body; larger ones get 413.
        max_chats_per_key: chats of one key that run or wait at once, each of several replies (`n`) counted; requests of
            other kinds count as one. More get 429. None: no limit.
        max_chats: the same over all keys; more get 503.
        max_choices: most replies (`n`) of one request.
        max_embedding_inputs: most texts of one embeddings request.
        max_stored_bytes_per_key: most bytes of responses of one key that `/v1/responses` stores to be continued.
        max_tokenize_characters: most characters of one `/tokenize` or `/v1/messages/count_tokens`, and tokens of one
            `/detokenize`.
        first_token_timeout: seconds that a chat may wait for its first token, its prompt's prefill included.
        request_timeout: seconds that a chat may take.
        read_timeout: seconds in which a request must have arrived whole.
        write_timeout: seconds that a client may leave its replies unread before it is dropped.
        default_temperature: for requests that give none; OpenAI's clients expect 1.
        max_agent_labels: distinct agent labels shown in metrics and statistics; later ones are counted as `other`.
        shutdown_grace: seconds that running chats get to finish after SIGTERM.
        access_log: log one line a request.
    """

    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    api_key_file: Path | None = None
    metrics_key: SecretStr | None = None
    tenant_salt: SecretStr | None = None
    max_body_bytes: ByteSize = Field(default=ByteSize(32 << 20), ge=1024)
    max_chats_per_key: int | None = Field(default=None, ge=1)
    max_chats: int = Field(default=1024, ge=1)
    max_choices: int = Field(default=16, ge=1)
    max_embedding_inputs: int = Field(default=2048, ge=1)
    max_stored_bytes_per_key: ByteSize = Field(default=ByteSize(64 << 20), ge=0)
    max_tokenize_characters: int = Field(default=1 << 20, ge=1)
    first_token_timeout: Seconds = 300.0
    request_timeout: Seconds = 1800.0
    read_timeout: Seconds = 60.0
    write_timeout: Seconds = 60.0
    default_temperature: float = Field(default=1.0, ge=0, le=2)
    max_agent_labels: int = Field(default=64, ge=1)
    shutdown_grace: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    access_log: bool = True

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, keys: Any) -> Any:
        return keys.split(",") if isinstance(keys, str) else keys

    @field_validator("api_keys")
    @classmethod
    def _not_empty(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(key.strip() for key in keys):
            raise ValueError("an API key is empty: give keys with at least one visible character, or none at all")
        return tuple(dict.fromkeys(key.strip() for key in keys))

    @field_validator("metrics_key")
    @classmethod
    def _visible(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not key.get_secret_value().strip():
            raise ValueError("the metrics key is empty: give one with visible characters, or none")
        return None if key is None else SecretStr(key.get_secret_value().strip())

    @field_validator("tenant_salt")
    @classmethod
    def _long_enough(cls, salt: SecretStr | None) -> SecretStr | None:
        if salt is not None and len(salt.get_secret_value()) < 16:
            raise ValueError("the salt has fewer than 16 characters: give a long random one, or none")
        return salt

    def all_api_keys(self) -> tuple[str, ...]:
        """Those given and those of the file, each once.

        Raises:
            ConfigError: the file can't be read, or holds none; the metrics key is one of them.
        """
        keys = tuple(dict.fromkeys((*self.api_keys, *(_read_keys(self.api_key_file) if self.api_key_file else ()))))
        if self.metrics_key is not None and self.metrics_key.get_secret_value() in keys:
            raise ConfigError(
                "the metrics key is an API key too, whose holder would see all keys' figures: take another"
            )
        return keys


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read api_key_file {path}: {error}. Give a text file with one key a line.") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ConfigError(f"api_key_file {path} holds no key: write one a line, or leave it out to let all in")
    return keys
