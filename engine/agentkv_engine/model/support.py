"""What this engine does not run, refused by config.json alone, before a weight is read (or downloaded)."""

import json
from pathlib import Path
from typing import Any

from agentkv_engine.errors import CheckpointError, UnsupportedModel
from agentkv_engine.model.registry import Family

_REMEDY = (
    "use the unquantised checkpoint (float32, float16 or bfloat16); to save memory, give --quantization int8 with it"
)
_QUANTISATION_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
"""Files that name a quantisation where config.json does not, and whose they are."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: it is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} not found: give a Hugging Face model directory (config.json, *.safetensors, tokenizer.json)"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): download the checkpoint again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object: download the checkpoint again")
    return content


def refuse_quantised(raw: dict[str, Any], directory: Path) -> None:
    """Raise `UnsupportedModel`, naming the format, for weights that are quantised."""
    entry = raw.get("quantization_config") or raw.get("compression_config")
    if entry is not None:
        raise UnsupportedModel(f"{directory} holds weights quantised by {_format(entry)}: {_REMEDY}")
    for name, method in _QUANTISATION_FILES.items():
        if (directory / name).is_file():
            raise UnsupportedModel(f"{directory} holds weights quantised by {method} (it has {name}): {_REMEDY}")


def _format(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "a method that config.json does not name"
    method = entry.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in entry else None)
    loaded = 4 if entry.get("load_in_4bit") else 8 if entry.get("load_in_8bit") else None
    bits = entry.get("bits") or entry.get("w_bit") or loaded
    known = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "bitsandbytes": "bitsandbytes"}
    name = known.get(str(method).lower(), str(method)) if method else "a method that config.json does not name"
    kind = entry.get("format") or (f"{bits} bits" if bits else None)
    return f"{name} ({kind})" if kind else name


def refuse_unsupported(raw: dict[str, Any], directory: Path, family: Family, context_length: int) -> None:
    """Raise `UnsupportedModel` for what a model of a known family may ask for and this engine does not do."""
    window = _window(raw, family)
    if window is not None and window < context_length:
        raise UnsupportedModel(
            f"{directory} attends within a sliding window of {window} tokens, which is not supported: "
            f"give --context-length {window} or less, so that the window never closes"
        )
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"{directory} uses the activation {activation!r}: only silu is supported")


def _window(raw: dict[str, Any], family: Family) -> int | None:
    """Tokens of the sliding window in which some layer attends, None where all layers see everything."""
    window = raw.get("sliding_window")
    if window is None or (family.window_needs_switch and not raw.get("use_sliding_window")):
        return None
    layers = raw.get("layer_types")
    if layers is not None and "sliding_attention" not in layers:
        return None
    first = raw.get("max_window_layers")
    if layers is None and family.window_needs_switch and first is not None and first >= raw["num_hidden_layers"]:
        return None
    return int(window)
