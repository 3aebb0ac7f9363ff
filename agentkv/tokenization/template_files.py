"""Where a model directory keeps its chat template: a file, or an entry of tokenizer_config.json, one or several."""

import json
from pathlib import Path
from typing import Any

from agentkv.errors import ModelError

DEFAULT = "default"


def read_template(path: Path, config: dict[str, Any]) -> str:
    """The Jinja text of a directory's template for chats: of several named ones, `default`.

    Args:
        path: the directory.
        config: its tokenizer_config.json.

    Raises:
        ModelError: there is none, or none of that name, or it can't be read.
    """
    file = path / "chat_template.jinja"
    if file.is_file():
        return _text(file)
    entry = config.get("chat_template")
    if entry is None and (path / "chat_template.json").is_file():  # first multi-modal checkpoints
        entry = _json(path / "chat_template.json").get("chat_template")
    named = _named(entry)
    if named.get(DEFAULT):
        return named[DEFAULT]
    named |= {each.stem: "" for each in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if named:
        raise ModelError(
            f"{path} has chat templates named {', '.join(sorted(named))}, and none named {DEFAULT}: copy the one that "
            "is meant for chats to chat_template.jinja"
        )
    raise ModelError(
        f"{path} has no chat template: agentkv serves chats and needs `chat_template.jinja`, or `chat_template` in "
        "tokenizer_config.json; use the model's instruct version, or add one"
    )


def _named(entry: Any) -> dict[str, str]:
    """Templates by name; a single one is the default."""
    if isinstance(entry, str) and entry:
        return {DEFAULT: entry}
    if isinstance(entry, list):
        entry = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
    if not isinstance(entry, dict):
        return {}
    return {name: text for name, text in entry.items() if isinstance(name, str) and isinstance(text, str)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} can't be read: {error}; download the model directory again") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(file))
    except ValueError as error:
        raise ModelError(f"{file} can't be read as JSON: {error}; download the model directory again") from error
    return content if isinstance(content, dict) else {}
