"""The command `agentkv`: `serve`, and the commands that other rooms plug in.

A plugged-in command is an entry point of the group `agentkv.commands`: a function that typer can read, or a typer app
of several, in a module that is quick to import. So `agentkv --help` loads neither torch nor LangGraph, and this room
need not know those above it.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

import agentkv
from agentkv.embedded import model_directory
from agentkv.errors import AgentKVError
from agentkv.options import takes
from agentkv.serve_options import ServeOptions
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
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command("serve")(serve)
    config = typer.Typer(name="config", help="The settings of `serve`.", no_args_is_help=True)
    config.command("show")(show_config)
    app.add_typer(config)
    for plugin in sorted(plugins, key=lambda plugin: plugin.name):
        try:
            command = plugin.load()
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=plugin.name)
            else:
                app.command(plugin.name)(command)
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


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve an OpenAI-compatible API whose chats read each other's KV.

    Settings that are not given are read from the environment (AGENTKV_KV_MEMORY, ...), then from the file.
    """
    # torch and FastAPI take seconds to import: only the command that needs them waits for them.
    from agentkv import serve_config  # noqa: PLC0415
    from agentkv.server import app  # noqa: PLC0415
    from agentkv.service import Service  # noqa: PLC0415

    config = serve_config.load(options.settings(), options.config).config
    with Service.open(config.model or model_directory(), config) as service:
        app.serve(service, config.host, config.port, config)


@takes(ServeOptions)
def show_config(options: ServeOptions) -> None:
    """Show the settings that `serve` would have with the same options, and where each comes from."""
    from agentkv import serve_config  # noqa: PLC0415

    lines = list(serve_config.load(options.settings(), options.config).lines())
    names, values = (max(len(line[column]) for line in lines) for column in (0, 1))
    for name, value, origin in lines:
        typer.echo(f"{name:<{names}}  {value:<{values}}  {origin}")
