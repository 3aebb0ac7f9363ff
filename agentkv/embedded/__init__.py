"""The model that ships with agentkv: the default of `demo` and `serve`. Its README.md says what it is."""

import json
from pathlib import Path

from agentkv.errors import ModelError


def model_directory() -> Path:
    """The directory of the model in the repository, in Hugging Face form."""
    return Path(__file__).parent / "model"


def model_name(path: Path) -> str:
    """What clients call the model in `path`: the directory's name, and `agentkv-embedded` for the repository's own."""
    return "agentkv-embedded" if path.resolve() == model_directory().resolve() else path.resolve().name


def is_trained(path: Path) -> bool:
    """Whether the model in `path` has learned anything: false only where its config.json says `agentkv_trained: false`.

    Raises:
        ModelError: `path` holds no readable config.json.
    """
    config_path = path / "config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read {config_path}: {error}. Give a Hugging Face model directory.") from error
    return bool(config.get("agentkv_trained", True))
