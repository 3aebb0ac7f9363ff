"""The model that ships with agentkv: the default of `demo` and `serve`. Its README.md says what it is."""

import json
import re
from pathlib import Path

from agentkv.errors import ModelError

_SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$")


def model_directory() -> Path:
    """The directory of the model in the repository, in Hugging Face form."""
    return Path(__file__).parent / "model"


def model_name(path: Path) -> str:
    """What clients call the model in `path`: the directory's name, its id where it is a snapshot in the cache of the
    Hugging Face Hub, and `agentkv-embedded` for the repository's own."""
    snapshot = _SNAPSHOT.search(path.absolute().as_posix())
    if snapshot is not None:
        return f"{snapshot[1]}/{snapshot[2]}"
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
