"""The command line: what it lists without loading, how it fails, and what `serve` makes of its flags."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import agentkv
import agentkv.server.app
from agentkv import cli
from agentkv.errors import ConfigError
from agentkv.serve_config import ServeConfig, load
from agentkv.serve_options import ServeOptions
from agentkv.server.settings import ServerSettings

PLUGINS = [
    EntryPoint("replay", "agentkv_evals.replay.command:replay", cli.COMMAND_GROUP),
    EntryPoint("demo", "agentkv_evals.demo.command:demo", cli.COMMAND_GROUP),
]
HEAVY = ("torch", "transformers", "langgraph", "langchain_core", "fastapi", "uvicorn", "pydantic")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Exit status of the script `agentkv` with these arguments."""
    monkeypatch.setattr(cli, "entry_points", lambda group: PLUGINS)
    monkeypatch.setattr(sys, "argv", ["agentkv", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code


def test_help_lists_every_command_in_one_line_each() -> None:
    result = CliRunner().invoke(cli.build_app(PLUGINS), ["--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for command, words in {"serve": "OpenAI-compatible", "demo": "LangGraph", "replay": "recorded"}.items():
        assert sum(command in line and words in line for line in lines) == 1


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from importlib.metadata import EntryPoint; from agentkv import cli\n"
        f"plugins = [EntryPoint(*plugin) for plugin in {[(each.name, each.value, each.group) for each in PLUGINS]}]\n"
        "try: cli.build_app(plugins)(['--help'])\n"
        f"finally: print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded: []" in done.stdout


def test_the_version_is_the_package_s() -> None:
    result = CliRunner().invoke(cli.build_app(()), ["--version"])
    assert (result.exit_code, result.output) == (0, f"agentkv {agentkv.__version__}\n")


def test_a_command_that_cannot_be_imported_does_not_take_the_others_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = EntryPoint("broken", "no_such_module.command:run", cli.COMMAND_GROUP)
    app = cli.build_app([broken, *PLUGINS])
    assert {command.name for command in app.registered_commands} == {"serve", "demo", "replay"}
    assert "no command 'broken'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--model", "no/such/model"], "no/such/model"),
        (["serve", "--kv-memory", "much"], "kv_memory"),
        (["serve", "--max-sequences", "0"], "max_sequences"),
        (["serve", "--api-key", " "], "an API key is empty"),
        (["serve", "--api-key-file", "no/such/file"], "one key a line"),
        (["serve", "--config", "no/such.toml"], "no/such.toml"),
        (["serve", "--max-chats", "0"], "max_chats"),
        (["config", "show", "--port", "70000"], "port"),
        (["replay", "no/such/traces.jsonl"], "no/such/traces.jsonl"),
        (["demo", "--model", "no/such/model"], "no/such/model"),
        (["demo", "--json", "no/such/folder/figures.json"], "no/such/folder"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("agentkv: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_an_unknown_mode_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "serve", "--reuse", "everything") == 2
    assert "everything" in capsys.readouterr().err


class Served:
    """Stands in for the HTTP server: notes what it was to serve, and returns as if it had been told to stop."""

    def __init__(self) -> None:
        self.health: dict[str, Any] = {}
        self.context_length = 0
        self.address: tuple[str, int] = ("", 0)
        self.settings = ServerSettings()
        self.service: Any = None

    def __call__(self, service: Any, host: str, port: int, settings: ServerSettings) -> None:
        self.service, self.health, self.context_length = service, service.health(), service.context_length
        self.address, self.settings = (host, port), settings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    server = Served()
    monkeypatch.setattr(agentkv.server.app, "serve", server)
    return server


def test_serve_opens_the_model_and_closes_it_at_the_end(
    served: Served, small_model: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("second\n\n third \n", encoding="utf-8")
    flags = ["--host", "0.0.0.0", "--port", "9000", "--kv-memory", "4MiB", "--context-length", "512"]
    flags += ["--reuse", "screened", "--api-key", "first", "--api-key-file", str(keys), "--no-access-log"]
    arguments = ["serve", "--model", str(small_model("qwen2")), *flags]
    result = CliRunner().invoke(cli.build_app(()), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert served.address == ("0.0.0.0", 9000)
    assert served.settings.all_api_keys() == ("first", "second", "third")
    assert not served.settings.access_log
    assert (served.health["status"], served.context_length) == ("ok", 512)
    assert served.service.health()["status"] == "closed"


def test_flags_go_before_the_environment(
    served: Served, small_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTKV_CONTEXT_LENGTH", "300")
    arguments = ["serve", "--model", str(small_model("qwen2"))]
    for flags, length in {(): 300, ("--context-length", "400"): 400}.items():
        CliRunner().invoke(cli.build_app(()), [*arguments, *flags], catch_exceptions=False)
        assert served.context_length == length


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no key"):
        ServerSettings(api_key_file=keys).all_api_keys()


def test_every_option_is_a_setting() -> None:
    names = {each.name for each in fields(ServeOptions)} - {"config", "api_key"}
    assert names < set(ServeConfig.model_fields)


def test_settings_come_from_flags_then_environment_then_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "agentkv.toml"
    file.write_text('port = 1\nmax_chats = 2\nkv_memory = "3MiB"\napi_keys = ["secret-key"]\n', encoding="utf-8")
    monkeypatch.setenv("AGENTKV_PORT", "4")
    monkeypatch.setenv("AGENTKV_MAX_CHATS", "5")
    arguments = ["config", "show", "--config", str(file), "--max-chats", "6"]
    result = CliRunner().invoke(cli.build_app(()), arguments, catch_exceptions=False)
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in result.output.splitlines()}
    assert shown["max_chats"] == "6 flag --max-chats"
    assert shown["port"] == "4 environment AGENTKV_PORT"
    assert shown["kv_memory"] == f"{3 << 20} file {file}"
    assert shown["reuse"] == "exact default"
    assert shown["api_keys"] == f"1, not shown file {file}"
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [("prot = 1", "prot: no such setting"), ("port = ", "TOML"), ("tenant_salt = 'hush'", "tenant_salt")],
)
def test_a_file_of_mistakes_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "agentkv.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        load({}, file)
    assert "hush" not in str(caught.value)


def test_keys_in_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKV_API_KEYS", "one, two,one")
    assert load({}).config.all_api_keys() == ("one", "two")
