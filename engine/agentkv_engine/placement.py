"""Where a model runs, and in which numbers."""

import logging
from collections.abc import Iterable

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
    _check_quantization(config)
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceUnavailable(
            f"device {name!r} can't be used ({reason}): give cpu, or a device that is here"
        ) from None
    _check_bfloat16(config)


def _check_bfloat16(config: EngineConfig) -> None:
    """Raises DeviceUnavailable: the GPU computes no bfloat16 (before Ampere), and nothing else is asked for."""
    device = torch.device(config.device)
    if device.type != "cuda" or dtype_of(config) is not torch.bfloat16:
        return
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    raise DeviceUnavailable(f"{name} (compute capability {major}.{minor}) has no bfloat16: give --dtype float16")


def check_stage_devices(config: EngineConfig, devices: Iterable[str]) -> None:
    """The same for devices that other processes will use: nothing is allocated on them here.

    Raises:
        DeviceUnavailable: one is not here, or does not run what is asked for.
    """
    _check_quantization(config)
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise DeviceUnavailable(f"{name!r} is no device: give cpu, or numbers of GPUs (--devices 0,1)") from None
        here = torch.cuda.device_count()
        if device.type != "cpu" and (device.type != "cuda" or (device.index or 0) >= here):
            raise DeviceUnavailable(
                f"device {name!r} is not among the {here} GPUs that are here: give others (--devices), or fewer stages"
            )


def _check_quantization(config: EngineConfig) -> None:
    if config.quantization is not None and torch.device(config.device).type != "cpu":
        raise DeviceUnavailable(
            f"{config.quantization} weights run on cpu only, not on {config.device!r}: leave --quantization out"
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
