"""The options of `agentkv serve`. Quick to import: their values are checked in `agentkv.serve_config`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from agentkv.api import Reuse

_SERVER, _LIMITS = "Server", "Limits"


def _option(help_: str, shown: str | bool = False, panel: str = _LIMITS, metavar: str | None = None) -> Any:
    return typer.Option(help=help_, show_default=shown, rich_help_panel=panel, metavar=metavar)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What was given on the command line; None means it was not. The fields but `config` and `api_key` are settings."""

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="AGENTKV_CONFIG", help="TOML file of settings, named as in the environment."
        ),
    ] = None

    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Hugging Face directory, or id on the Hub.", show_default="the repository's"
        ),
    ] = None
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit on the Hub.", show_default="main")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of weights and KV.", show_default="auto"),
    ] = None
    quantization: Annotated[
        Literal["int8"] | None, typer.Option(help="Keep weights in 8 bits; on CPU.", show_default="none")
    ] = None
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the model runs: cpu or cuda.", show_default="cpu")
    ] = None
    pipeline_stages: Annotated[
        int | None, typer.Option(metavar="STAGES", help="Spread the layers over processes.", show_default="none")
    ] = None
    devices: Annotated[
        str | None, typer.Option(metavar="LIST", help="Of the stages, e.g. 0,1.", show_default="one after the other")
    ] = None
    layers: Annotated[
        str | None, typer.Option(metavar="LIST", help="Of each stage, e.g. 16,16.", show_default="alike")
    ] = None
    steps_under_way: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Ordered ahead of stages.", show_default="as many as stages")
    ] = None
    kv_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of KV, e.g. 2GiB.", show_default="1GiB")
    ] = None
    host_kv_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most bytes of KV that wait in host memory.", show_default="none"),
    ] = None
    reuse: Annotated[
        Reuse | None, typer.Option(help="KV that chats may read unless they say otherwise.", show_default="exact")
    ] = None
    selector: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Which reused rows are recomputed.", show_default="reading_change(0.3)"),
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Estimates of the error by `agentkv calibrate`.", show_default="none"),
    ] = None
    target_kl: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Repair more until the estimate is no higher; needs --calibration.",
            show_default="none",
        ),
    ] = None
    max_rows_per_step: Annotated[
        int | None, typer.Option(metavar="ROWS", help="Rows of one engine step.", show_default="1024")
    ] = None
    budget: Annotated[
        Literal["fixed", "throttling"] | None,
        typer.Option(help="Fill each step, or follow the load.", show_default="fixed"),
    ] = None

    host: Annotated[str | None, _option("Address to listen on.", "127.0.0.1", _SERVER)] = None
    port: Annotated[int | None, _option("Port to listen on.", "8000", _SERVER)] = None
    api_key: Annotated[
        list[str] | None, _option("Key to let in, each a tenant of its own; repeatable.", panel=_SERVER, metavar="KEY")
    ] = None
    api_key_file: Annotated[
        Path | None,
        _option(
            "Keys to let in, one a line: unlike --api-key, not seen in the process list.", panel=_SERVER, metavar="FILE"
        ),
    ] = None
    access_log: Annotated[bool | None, _option("Log one line a request.", "on", _SERVER)] = None
    shutdown_grace: Annotated[
        float | None, _option("Time for running chats after SIGTERM.", "30", _SERVER, "SECONDS")
    ] = None

    context_length: Annotated[int | None, _option("Most tokens of a chat.", "the model's", metavar="TOKENS")] = None
    max_prompt_tokens: Annotated[int | None, _option("Most tokens of a prompt.", "no limit", metavar="TOKENS")] = None
    max_reply_tokens: Annotated[int | None, _option("Most tokens of a reply.", "no limit", metavar="TOKENS")] = None
    max_sequences: Annotated[int | None, _option("Chats that the engine runs at once.", "64", metavar="CHATS")] = None
    max_chats: Annotated[int | None, _option("Chats under way at once; more get 503.", "1024")] = None
    max_chats_per_key: Annotated[int | None, _option("Of one key; more get 429.", "no limit", metavar="INTEGER")] = None
    max_kept_per_tenant: Annotated[
        str | None, _option("Kept KV of one key, whose oldest goes first.", "no limit", metavar="SIZE")
    ] = None
    max_body_bytes: Annotated[str | None, _option("Largest request body.", "32MiB", metavar="SIZE")] = None
    first_token_timeout: Annotated[
        float | None, _option("Longest wait for a first token.", "300", metavar="SECONDS")
    ] = None
    request_timeout: Annotated[float | None, _option("Longest chat.", "1800", metavar="SECONDS")] = None
    read_timeout: Annotated[float | None, _option("Time for a request to arrive.", "60", metavar="SECONDS")] = None
    write_timeout: Annotated[float | None, _option("Time that replies may lie unread.", "60", metavar="SECONDS")] = None

    def settings(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        values = asdict(self)
        del values["config"]
        values["api_keys"] = tuple(values.pop("api_key") or ()) or None
        return {name: value for name, value in values.items() if value is not None}
