"""Where a model's files are: a directory, or the Hugging Face Hub (through its cache, so also without a network).

The library reads the environment as it always does: `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN`,
`HF_ENDPOINT`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentkv.embedded import model_directory
from agentkv.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "tokenizer.model", "merges.txt")
_WEIGHTS = ("*.safetensors",)
# Copies of the same weights in other forms, and what other programs read.
_IGNORED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "gguf/*", "adapter*")


def find_model(
    model: str | Path | None,
    *,
    revision: str | None = None,
    before_weights: Callable[[Path], object] = lambda _directory: None,
) -> Path:
    """The directory of a model: itself, the repository's own for None, or the Hub's, downloaded if need be.

    Args:
        model: a directory, which wins, or an id on the Hub as `Qwen/Qwen2.5-0.5B-Instruct`.
        revision: branch, tag or commit on the Hub; None is its `main`.
        before_weights: called with the directory when all but the weights is there; what it raises stops the download.

    Raises:
        ModelError: there is no such directory, model or revision; the Hub does not let it be read; or it can't be
            reached and the cache lacks it.
    """
    if model is None:
        return model_directory()
    if Path(model).expanduser().is_dir():
        if revision is not None:
            raise ModelError(
                f"{model} is a directory, and --revision {revision} is for models on the Hub: leave it out"
            )
        return Path(model).expanduser()
    name = str(model)
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"there is no directory {name}: give one with a Hugging Face model, or an id on the Hub, as "
            "Qwen/Qwen2.5-0.5B-Instruct"
        )
    directory = _download(name, revision, _SMALL_FILES)
    before_weights(directory)
    # The commit of the first part, so that both are of one; a cache filled by hand may name it otherwise.
    return _download(name, revision if directory.parent.name != "snapshots" else directory.name, _WEIGHTS)


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    # The library takes a second to import, and only models on the Hub need it.
    import huggingface_hub  # noqa: PLC0415

    try:
        found: Any = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_IGNORED)
        )
    except (OSError, ValueError) as error:  # all of the library's own are one of these
        raise ModelError(_reason(error, name, revision)) from error
    return Path(found)


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """What to tell the user, most special errors first."""
    from huggingface_hub import constants, errors  # noqa: PLC0415

    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is gated: accept its licence at {page}, then give a token (`hf auth login`, or HF_TOKEN in the "
            "environment)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name} is no directory here, and there is no such model on the Hub, or it is private: look at {page}, "
            "and for a private one give a token (`hf auth login`, or HF_TOKEN in the environment)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r}: give a branch, tag or commit of {page}/commits/main"
    wanted = name if revision is None else f"{name} at revision {revision}"
    cache = constants.HF_HUB_CACHE
    if constants.HF_HUB_OFFLINE and isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            f"{wanted} is no directory here and not (or not wholly) in the cache {cache}, and HF_HUB_OFFLINE keeps "
            "this program off the network: unset it, or fetch the model where there is a network (`hf download`)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{wanted} is no directory here and not (or not wholly) in the cache {cache}, and the Hub can't be "
            f"reached at {constants.ENDPOINT}: give a directory, or try again with a network"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hub did not give {wanted}: {str(error).splitlines()[0]}; try again later, or give a directory"
    return f"{wanted} can't be fetched into {cache}: {error}"
