"""Weights between pieces of training: fp32 safetensors in parts of at most 15 MB, and the shape beside them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentkv_evals.training.model import Decoder, Shape

PART_BYTES = 15_000_000


def save(model: Decoder, folder: Path) -> None:
    """Write the master weights and the shape; optimiser moments are not kept (they are warmed again)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shape.json").write_text(json.dumps(model.shape.to_dict(), indent=1) + "\n")
    parts: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in model.state_dict().items():
        size = tensor.numel() * 4
        if used + size > PART_BYTES and parts[-1]:
            parts.append({})
            used = 0
        parts[-1][name.removeprefix("_orig_mod.")] = tensor.detach().float().cpu().contiguous()
        used += size
    for i, part in enumerate(parts):
        save_file(part, folder / f"weights-{i}.safetensors")


def load(folder: Path) -> Decoder:
    """The model of a folder that `save` wrote, on the CPU in fp32."""
    model = Decoder(Shape(**json.loads((folder / "shape.json").read_text())))
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("weights-*.safetensors")):
        tensors.update(load_file(path))
    model.load_state_dict(tensors)
    return model


def count_parameters(model: torch.nn.Module) -> int:
    """Distinct parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
