"""The command `agentkv`: `serve`, and the commands that other rooms plug in.

A plugged-in command is an entry point of the group `agentkv.commands`: a function that typer can read, in a module that
is quick to import. So `agentkv --help` loads neither torch nor LangGraph, and this room need not know those above it.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

import typer

import agentkv
from agentkv.api import Reuse
from agentkv.embedded import model_directory
from agentkv.errors import AgentKVError, ConfigError
from agentkv_engine.errors import EngineError

COMMAND_GROUP = "agentkv.commands"
"""Group of the entry points that become commands."""


def main() -> None:
    """The script `agentkv`. What the user can set right is one line on stderr and exit status 2."""
    app = build_app(entry_points(group=COMMAND_GROUP))
    try:
        app()
    except (AgentKVError, EngineError) as error:
        typer.echo(f"agentkv: {error}", err=True)
        sys.exit(2)


def build_app(plugins: Iterable[EntryPoint]) -> typer.Typer:
    """The application with `serve` and the plugged-in commands; one that can't be imported is named on stderr."""
    app = typer.Typer(
        name="agentkv",
        help="Multi-agent LLM applications answer sooner: every message's KV is kept once and read by every agent.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command("serve")(serve)
    for plugin in sorted(plugins, key=lambda plugin: plugin.name):
        try:
            app.command(plugin.name)(plugin.load())
        except (ImportError, AttributeError) as error:
            typer.echo(f"agentkv: no command {plugin.name!r}, {plugin.value} can't be imported: {error}", err=True)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentkv {agentkv.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def serve(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face model directory.", show_default="the repository's")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    kv_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of KV, e.g. 2GiB.", show_default="1GiB")
    ] = None,
    reuse: Annotated[
        Reuse | None, typer.Option(help="KV that chats may read unless they say otherwise.", show_default="exact")
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Which reused rows are recomputed.", show_default="query_attention(0.2)"),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Most tokens of a chat.", show_default="the model's")
    ] = None,
    max_rows_per_step: Annotated[
        int | None, typer.Option(metavar="ROWS", help="Rows of one engine step.", show_default="1024")
    ] = None,
    max_sequences: Annotated[
        int | None, typer.Option(metavar="CHATS", help="Chats that run at once.", show_default="64")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the model runs: cpu or cuda.", show_default="cpu")
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Key to let in, each a tenant of its own; repeatable.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keys to let in, one a line: unlike --api-key, not seen in the process list."
        ),
    ] = None,
    access_log: Annotated[bool, typer.Option(help="Log one line a request.")] = True,
) -> None:
    """Serve an OpenAI-compatible API whose chats read each other's KV.

    Settings that are not given are read from the environment (AGENTKV_KV_MEMORY, ...).
    """
    # torch and FastAPI take seconds to import: only the command that needs them waits for them.
    from agentkv.config import ServiceConfig  # noqa: PLC0415
    from agentkv.server import app, settings  # noqa: PLC0415
    from agentkv.service import Service  # noqa: PLC0415

    keys = (*(api_key or ()), *(_read_keys(api_key_file) if api_key_file else ()))
    server_settings = settings.ServerSettings.from_values(api_keys=keys, access_log=access_log)
    config = ServiceConfig.from_values(
        kv_memory=kv_memory,
        reuse=reuse,
        selector=selector,
        context_length=context_length,
        max_rows_per_step=max_rows_per_step,
        max_sequences=max_sequences,
        device=device,
    )
    with Service.open(model or model_directory(), config) as service:
        app.serve(service, host, port, server_settings)


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"can't read --api-key-file {path}: {error}. Give a text file with one key a line."
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key: write one a line, or leave the flag out to let all in")
    return keys
