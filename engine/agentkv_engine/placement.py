"""Where a model runs, and in which numbers."""

import logging

import torch

from agentkv_engine.config import EngineConfig
from agentkv_engine.errors import DeviceUnavailable

_logger = logging.getLogger(__name__)


def check_device(config: EngineConfig) -> None:
    """That the device is here and runs what is asked for.

    Raises:
        DeviceUnavailable: it is not, or does not.
    """
    name = config.device
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceUnavailable(
            f"device {name!r} can't be used ({reason}): give cpu, or a device that is here"
        ) from None
    if config.quantization is not None and torch.device(name).type != "cpu":
        raise DeviceUnavailable(
            f"{config.quantization} weights run on cpu only, not on {name!r}: leave --quantization out"
        )


def dtype_of(config: EngineConfig) -> torch.dtype:
    """The dtype of weights and KV: what is asked for, else what suits the device."""
    if torch.device(config.device).type != "cpu":
        return config.dtype or torch.bfloat16
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if config.dtype is torch.bfloat16 and not has_bfloat16:
        _logger.warning("this processor has no bfloat16 instructions: float32 (--dtype float32) will be faster")
    if config.dtype is None and config.quantization is not None and has_bfloat16:
        return torch.bfloat16
    return config.dtype or torch.float32
