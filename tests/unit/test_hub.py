"""Models by directory and by id on the Hub: a cache made here, and the library's own errors as its answers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from agentkv.config import ServiceConfig
from agentkv.embedded import model_directory, model_name
from agentkv.errors import ModelError
from agentkv.hub import find_model
from agentkv.service import Service

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/small-model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(cache: Path, source: Path) -> Path:
    """Put a model into the cache, as a download of `main` does."""
    folder = cache / f"models--{NAME.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    shutil.copytree(source, folder / "snapshots" / COMMIT)
    return folder / "snapshots" / COMMIT


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} from the Hub\nRequest ID: 1", response=response)


def refusing(error: Exception) -> Callable[..., Any]:
    def snapshot_download(*args: Any, **kwargs: Any) -> str:
        raise error

    return snapshot_download


def test_a_directory_wins_over_an_id(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert find_model(NAME).resolve() == (tmp_path / NAME).resolve()
    assert find_model(None) == model_directory()
    with pytest.raises(ModelError, match="is a directory, and --revision v1 is for models on the Hub"):
        find_model(NAME, revision="v1")


def test_an_id_is_served_from_the_cache_without_a_network(cache: Path, small_model: Callable[[str], Path]) -> None:
    directory = fill(cache, small_model("qwen3"))
    assert find_model(NAME) == directory
    assert find_model(NAME, revision=COMMIT) == directory
    with Service.open(NAME, ServiceConfig(kv_memory=1 << 20, revision="main")) as service:
        assert service.model_id == NAME == model_name(directory)


def test_a_model_that_is_not_supported_is_refused_before_its_weights_are_fetched(
    cache: Path, small_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = fill(cache, small_model("llama"))
    config = directory / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MixtralForCausalLM"), encoding="utf-8")
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match="MixtralForCausalLM is not supported"):
        Service.open(NAME, ServiceConfig(kv_memory=1 << 20))
    (first,) = asked
    assert "config.json" not in first["ignore_patterns"]
    assert not any(pattern.endswith("safetensors") for pattern in first["allow_patterns"])

    assert find_model(NAME, revision="v2") == directory
    small, weights = asked[1:]
    assert (small["revision"], weights["revision"]) == ("v2", COMMIT)  # both parts are of one commit
    assert weights["allow_patterns"] == ["*.safetensors"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            answer(errors.GatedRepoError, 403),
            r"is gated: accept its licence at https://\S+small-model, then",
        ),
        (answer(errors.RepositoryNotFoundError, 401), r"no such model on the Hub, or it is private.*HF_TOKEN"),
        (answer(errors.RevisionNotFoundError, 404), r"has no revision 'v9': give a branch, tag or commit"),
        (answer(errors.HfHubHTTPError, 503), r"at revision v9: 503 from the Hub; try again later"),
        (errors.LocalEntryNotFoundError("no"), r"not \(or not wholly\) in the cache \S+, and the Hub can't be reached"),
        (OSError(28, "No space left on device"), r"can't be fetched into \S+hub: .*No space left"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_remedy(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refusing(error))
    with pytest.raises(ModelError, match=message):
        find_model(NAME, revision="v9")


def test_offline_and_not_cached(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"not \(or not wholly\) in the cache .*HF_HUB_OFFLINE keeps"):
        find_model(NAME)
    with pytest.raises(ModelError, match=r"small-model at revision v1 is no directory here and not .* in the cache"):
        find_model(NAME, revision="v1")


@pytest.mark.parametrize("name", ["./models/none", "/no/such/place", "a/b/c", "llama", "some one/model"])
def test_what_is_neither_a_directory_nor_an_id(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no directory {name}: give one .* or an id on the Hub"):
        find_model(name)
