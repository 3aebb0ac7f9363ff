"""Loads a Hugging Face directory's safetensors into a `Decoder`."""

import json
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from agentkv_engine.errors import CheckpointError, MissingTensor
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.registry import checkpoint_names
from agentkv_engine.model.rope import RotaryEmbedding


def load_decoder(directory: Path, *, dtype: torch.dtype, device: str) -> Decoder:
    """Build the model of a directory and load its weights.

    Raises:
        UnsupportedModel, MissingTensor, CheckpointError: see `agentkv_engine.errors`.
    """
    config = ModelConfig.from_directory(directory)
    rope = RotaryEmbedding(config.rope, config.head_dim).to(device)
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.rope = rope
    names = {name: checkpoint_names(config.architecture, name) for name in _parameter_names(decoder)}
    with _Weights(directory) as weights:
        state = {name: _read(weights, parts, dtype, device) for name, parts in names.items()}
    _check_shapes(decoder, state, names)
    decoder.load_state_dict(state, strict=False, assign=True)
    if config.tied_embeddings:
        decoder.head.weight = decoder.embedding.weight
    return decoder.requires_grad_(False).eval()


def _parameter_names(decoder: Decoder) -> list[str]:
    """Each parameter once: a tied head is not a tensor of its own."""
    return [name for name, _ in decoder.named_parameters()]


def _read(weights: "_Weights", parts: tuple[str, ...], dtype: torch.dtype, device: str) -> Tensor:
    """One parameter, its parts one below the other; at most one parameter is held twice meanwhile."""
    tensors = [weights.read(part).to(device, dtype) for part in parts]
    if len({tensor.shape[1:] for tensor in tensors}) != 1:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise CheckpointError(f"tensors {' + '.join(parts)} have shapes {shapes}: they are not of one layer")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _check_shapes(decoder: nn.Module, state: dict[str, Tensor], names: dict[str, tuple[str, ...]]) -> None:
    for name, parameter in decoder.named_parameters():
        if state[name].shape != parameter.shape:
            raise CheckpointError(
                f"tensor {' + '.join(names[name])} has shape {list(state[name].shape)}, config.json asks for "
                f"{list(parameter.shape)}: config.json and weights are not of the same model"
            )


class _Weights:
    """The safetensors files of a directory: one file, or shards with an index."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._file_of: dict[str, safe_open] = {}

    def __enter__(self) -> "_Weights":
        for path in self._paths():
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                self._stack.close()
                raise CheckpointError(
                    f"{path} is not a readable safetensors file ({error}): download it again"
                ) from None
            self._file_of.update(dict.fromkeys(file.keys(), file))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """The tensor of this name, on CPU."""
        if name not in self._file_of:
            raise MissingTensor(f"{self._directory} has no tensor {name}: the checkpoint is incomplete")
        return self._file_of[name].get_tensor(name)

    def _paths(self) -> list[Path]:
        index = self._directory / "model.safetensors.index.json"
        if index.exists():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [self._directory / shard for shard in sorted(shards)]
        paths = sorted(self._directory.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{self._directory} has no *.safetensors file: convert the checkpoint to safetensors")
        return paths
