"""The safetensors files of a directory: one file, or shards with an index."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from agentkv_engine.errors import CheckpointError, MissingTensor, UnsupportedModel
from agentkv_engine.model.support import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FLOATING = ("F64", "F32", "F16", "BF16")


class SafetensorsFiles:
    """Tensors by name, whichever file holds them.

    Files are open (and mapped) only inside `opened()`, and only those that are asked for.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack: ExitStack | None = None
        self._open: dict[Path, Any] = {}
        self._file_of = self._indexed()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Tensors can be read inside; the mappings of those that nobody holds any more are given up at the end."""
        with ExitStack() as self._stack:
            try:
                yield
            finally:
                self._open.clear()
        self._stack = None

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; nothing is read.

        Raises:
            MissingTensor: no file has it.
            UnsupportedModel: its numbers are not floating-point ones of 16 bits or more: it is quantised.
        """
        part = self._file(name).get_slice(name)
        if part.get_dtype() not in _FLOATING:
            raise UnsupportedModel(
                f"{self._directory} holds quantised weights ({name} is {part.get_dtype()}): use the unquantised "
                "checkpoint (float32, float16 or bfloat16); to save memory, give --quantization int8 with it"
            )
        return tuple(part.get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor on CPU, memory-mapped: its pages are read as they are used, and not to be written."""
        return self._file(name).get_tensor(name)

    def _file(self, name: str) -> Any:
        path = self._file_of.get(name)
        if path is None:
            raise MissingTensor(
                f"{self._directory} has no tensor {name}: the checkpoint is incomplete, or not of the architecture "
                "that its config.json names"
            )
        if path not in self._open:
            assert self._stack is not None, "files are read inside `opened()`"
            self._open[path] = self._stack.enter_context(_open(path))
        return self._open[path]

    def _indexed(self) -> dict[str, Path]:
        """The file of every tensor."""
        index = self._directory / INDEX_FILE
        if index.is_file():
            shards = {name: self._directory / str(shard) for name, shard in self._weight_map(index).items()}
            missing = sorted({path.name for path in shards.values() if not path.is_file()})
            if missing:
                raise CheckpointError(
                    f"{self._directory} lacks {', '.join(missing)} of its {INDEX_FILE}: download the checkpoint again"
                )
            return shards
        files = self._unindexed()
        found: dict[str, Path] = {}
        for path in files:
            with _open(path) as file:
                found.update(dict.fromkeys(file.keys(), path))
        return found

    def _weight_map(self, index: Path) -> dict[str, str]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map: download the checkpoint again")
        return weight_map

    def _unindexed(self) -> list[Path]:
        if (self._directory / SINGLE_FILE).is_file():
            return [self._directory / SINGLE_FILE]
        paths = sorted(path for path in self._directory.glob("*.safetensors") if not _is_other(path))
        if not paths:
            raise CheckpointError(
                f"{self._directory} has no *.safetensors file{self._other_formats()}: convert the checkpoint to "
                "safetensors, or take one that is"
            )
        return paths

    def _other_formats(self) -> str:
        others = sorted(path.name for kind in ("*.bin", "*.gguf", "*.pth") for path in self._directory.glob(kind))
        return f" (it has {', '.join(others[:3])})" if others else ""


def _is_other(path: Path) -> bool:
    """Whether a file holds the same weights once more under other names (Mistral's), or an adapter."""
    return path.name.startswith(("consolidated", "adapter"))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}): download it again") from None
