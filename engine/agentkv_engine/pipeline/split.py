"""Which layers each stage has, and where it runs."""

from agentkv_engine.config import PipelineConfig
from agentkv_engine.errors import PipelineRefused


def split_layers(config: PipelineConfig, num_layers: int) -> tuple[range, ...]:
    """The layers of each stage, in order: as many as were asked for, else alike, the last ones having one less.

    Raises:
        PipelineRefused: more stages than layers, or counts that do not add up.
    """
    num_stages = config.num_stages
    if num_stages > num_layers:
        raise PipelineRefused(
            f"{num_stages} stages share {num_layers} layers: give at most {num_layers} stages (--pipeline-stages)"
        )
    counts = config.layers or tuple(
        num_layers // num_stages + (number < num_layers % num_stages) for number in range(num_stages)
    )
    if len(counts) != num_stages or min(counts) < 1 or sum(counts) != num_layers:
        raise PipelineRefused(
            f"layers {','.join(map(str, counts))} for {num_stages} stages of a model of {num_layers} layers: give "
            f"{num_stages} counts of 1 or more that add up to {num_layers} (--layers)"
        )
    starts = [sum(counts[:number]) for number in range(num_stages)]
    return tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))


def stage_devices(config: PipelineConfig, device: str) -> tuple[str, ...]:
    """The device of each stage: those that were asked for, else `cpu` for all, or the first GPUs.

    Raises:
        PipelineRefused: another number of devices than of stages.
    """
    if config.devices:
        if len(config.devices) != config.num_stages:
            raise PipelineRefused(
                f"{len(config.devices)} devices for {config.num_stages} stages: give one for each (--devices)"
            )
        return tuple(f"{device}:{name}" if name.isdigit() else name for name in config.devices)
    if device == "cpu":
        return ("cpu",) * config.num_stages
    return tuple(f"{device.partition(':')[0]}:{number}" for number in range(config.num_stages))
