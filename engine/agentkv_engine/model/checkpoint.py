"""Loads a Hugging Face directory's safetensors into a `Decoder`, one layer after the other.

Tensors are memory-mapped. One that this engine has as it lies in the file (no other dtype or device, not a part of a
larger matrix) stays so: it is not copied, and processes share it. All others are copied one by one, and the pages they
were read from are given back after each layer: loading takes at most the weights as they will lie in memory, and one
layer more.
"""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agentkv_engine.config import Quantization
from agentkv_engine.errors import CheckpointError
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.int8 import Int8Embedding, Int8Linear, quantise, quantise_linears
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.registry import checkpoint_names
from agentkv_engine.model.safetensors_files import SafetensorsFiles


def load_decoder(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: str,
    context_length: int | None = None,
    quantization: Quantization | None = None,
    layers: range | None = None,
) -> Decoder:
    """Build the model of a directory and load its weights.

    Args:
        directory: config.json and safetensors, in one file or in shards.
        dtype, device: of the weights, whatever the files have.
        context_length: most positions wanted; None takes the model's.
        quantization: `int8` puts each layer's weights into 8 bits as soon as it is read.
        layers: a stage's (see `Decoder.keep_layers`): no others are read; None is the whole model.

    Raises:
        UnsupportedModel, MissingTensor, CheckpointError: see `agentkv_engine.errors`. What can be told without reading
            a weight is told before one is read.
    """
    config = ModelConfig.from_directory(directory, context_length=context_length)
    decoder = empty_decoder(config)
    if layers is not None:
        decoder.keep_layers(layers)
    first = layers.start if layers is not None else 0
    decoder.rope.to(device)
    files = SafetensorsFiles(directory)
    _check_shapes(decoder, files, first)
    for unit, parameters in itertools.groupby(_parameters(decoder), key=lambda item: _unit(item[0])):
        with files.opened():
            for name, shape in parameters:
                tensor = _read(files, _parts(config, _whole(decoder, name, first), shape), dtype, device)
                module, _, kind = name.rpartition(".")
                decoder.get_submodule(module).register_parameter(kind, nn.Parameter(tensor, requires_grad=False))
        if quantization == "int8":
            _quantise(decoder, unit)
    if config.tied_embeddings and quantization is None and hasattr(decoder, "head") and hasattr(decoder, "embedding"):
        decoder.head.weight = decoder.embedding.weight
    return decoder.requires_grad_(False).eval()


def empty_decoder(config: ModelConfig) -> Decoder:
    """A decoder whose parameters have shapes and take no memory yet."""
    with torch.device("meta"), _Undrawn():
        return Decoder(config)


class _Undrawn(TorchFunctionMode):
    """Leaves out the random numbers that torch's modules begin with: nobody would read them, and drawing them on the
    meta device would import a symbolic algebra package, which takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return None if func in _DRAWING else func(*args, **(kwargs or {}))


_DRAWING = frozenset({nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_})
"""What torch's modules draw their first weights with; they do not use what it returns."""


def wanted_shapes(decoder: Decoder, first_layer: int = 0) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint of this decoder has, by its names, and their shapes."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in _parameters(decoder):
        wanted |= _parts(decoder.config, _whole(decoder, name, first_layer), shape)
    return wanted


def _whole(decoder: Decoder, parameter: str, first_layer: int) -> str:
    """What the whole model calls a parameter of a stage that begins with this layer."""
    if parameter.startswith("layers."):
        _, index, rest = parameter.split(".", 2)
        return f"layers.{int(index) + first_layer}.{rest}"
    if parameter == "head.weight" and decoder.config.tied_embeddings:
        return "embedding.weight"
    return parameter


def _parameters(decoder: Decoder) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each parameter, once: a tied head is not a tensor of its own."""
    return [(name, tuple(parameter.shape)) for name, parameter in decoder.named_parameters()]


def _unit(parameter: str) -> str:
    """What is loaded together: one layer, the embedding, the head."""
    return ".".join(parameter.split(".")[:2])


def _quantise(decoder: Decoder, unit: str) -> None:
    """Put what was just loaded into 8 bits."""
    if unit == "embedding.weight":  # a tied head has the same table
        weight, scales = quantise(decoder.embedding.weight)
        decoder.embedding = Int8Embedding(weight, scales)
        if decoder.config.tied_embeddings and hasattr(decoder, "head"):
            decoder.head = Int8Linear(weight, scales)
    elif unit == "head.weight":
        decoder.head = Int8Linear(*quantise(decoder.head.weight))
    elif unit.startswith("layers."):
        quantise_linears(decoder.get_submodule(unit))


def _parts(config: ModelConfig, parameter: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors that make up a parameter, one below the other, and their shapes."""
    names = checkpoint_names(config.architecture, parameter)
    rows, *others = shape
    if len(names) == 3:
        keys = config.num_kv_heads * config.head_dim
        split = (rows - 2 * keys, keys, keys)
    else:
        split = (rows // len(names),) * len(names)
    return {name: (part, *others) for name, part in zip(names, split, strict=True)}


def _check_shapes(decoder: Decoder, files: SafetensorsFiles, first_layer: int) -> None:
    """That every tensor is there, in the shape that config.json asks for."""
    with files.opened():
        for name, shape in wanted_shapes(decoder, first_layer).items():
            if (found := files.shape(name)) != shape:
                raise CheckpointError(
                    f"tensor {name} has shape {list(found)}, config.json asks for {list(shape)}: config.json and "
                    "weights are not of the same model"
                )


def _read(files: SafetensorsFiles, parts: dict[str, tuple[int, ...]], dtype: torch.dtype, device: str) -> Tensor:
    """One parameter; a part that needs another dtype is converted as it is copied to its place."""
    if len(parts) == 1:
        (name,) = parts
        return files.read(name).to(device, dtype)
    shapes = list(parts.values())
    whole = torch.empty((sum(rows for rows, *_ in shapes), *shapes[0][1:]), dtype=dtype, device=device)
    for name, rows in zip(parts, whole.split([rows for rows, *_ in shapes]), strict=True):
        rows.copy_(files.read(name))
    return whole
