"""All settings of `agentkv serve` as one object, and the origin of each: a flag, the environment, a file, a default."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, TomlConfigSettingsSource

from agentkv.config import ENV_PREFIX, ServiceConfig, unusable
from agentkv.errors import ConfigError
from agentkv.server.settings import ServerSettings


class ServeConfig(ServiceConfig, ServerSettings):
    """Settings of the service and of the server, and the address.

    Attributes:
        model: Hugging Face directory, or id on the Hub; None is the model in the repository.
        host, port: where to listen.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Settings, and the origin of each."""

    config: ServeConfig
    origins: Mapping[str, str]

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Name, value and origin of each setting; secrets are not shown."""
        for name in sorted(ServeConfig.model_fields):
            yield name, _shown(name, getattr(self.config, name)), self.origins[name]


def load(flags: Mapping[str, Any], file: Path | None = None) -> Loaded:
    """Settings from flags, else from the environment, else from a TOML file, else the defaults.

    Raises:
        ConfigError: a file that can't be read, a name that is no setting, or a value that can't be used.
    """
    _check_readable(file)

    class FromFile(ServeConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    try:
        config = FromFile(**flags)
        environment = EnvSettingsSource(ServeConfig)()
    except ValidationError as error:
        raise unusable(error) from None
    in_file = TomlConfigSettingsSource(ServeConfig, file)()
    origins = {
        name: f"flag --{name.removesuffix('s') if name == 'api_keys' else name}".replace("_", "-")
        if name in flags
        else f"environment {ENV_PREFIX}{name.upper()}"
        if name in environment
        else f"file {file}"
        if name in in_file
        else "default"
        for name in ServeConfig.model_fields
    }
    return Loaded(config=config, origins=origins)


def _check_readable(file: Path | None) -> None:
    if file is None:
        return
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"can't read settings from {file}: {error}; give a TOML file") from error


def _shown(name: str, value: Any) -> str:
    if name == "api_keys":
        return f"{len(value)}, not shown"
    if isinstance(value, SecretStr):
        return "not shown"
    return "" if value is None else str(getattr(value, "value", value))
