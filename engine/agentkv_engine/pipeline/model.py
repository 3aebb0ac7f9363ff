"""A model whose layers are spread over processes."""

from pathlib import Path

import torch

from agentkv_engine.cache.kv_pool import bytes_per_block
from agentkv_engine.config import EngineConfig, PipelineConfig
from agentkv_engine.errors import PipelineRefused
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.random_weights import RandomWeights
from agentkv_engine.pipeline.group import ordered
from agentkv_engine.pipeline.runner import PipelineRunner
from agentkv_engine.pipeline.spec import StageSpec
from agentkv_engine.pipeline.split import split_layers, stage_devices
from agentkv_engine.placement import check_stage_devices, dtype_of
from agentkv_engine.runner.runner import PoolPlan


class PipelineModel:
    """Implements `RemoteModel`: knows the model's shape, and starts its stages.

    Args:
        weights: directory of the checkpoint, of which every stage reads its own layers; or what is drawn instead.
        config: the engine's, with a pipeline.

    Raises:
        CheckpointError: config.json can't be used.
        DeviceUnavailable: a stage's device is not here.
        PipelineRefused: the stages can't be made of it.
    """

    def __init__(self, weights: Path | RandomWeights, config: EngineConfig) -> None:
        assert config.pipeline is not None, "no pipeline is asked for"
        if config.host_kv_memory:
            raise PipelineRefused("a pipeline keeps no KV in host memory yet: leave --host-kv-memory out")
        if isinstance(weights, RandomWeights):
            self.config = weights.config
        else:
            self.config = ModelConfig.from_directory(weights, context_length=config.context_length)
        self.dtype = dtype_of(config)
        self._weights = weights
        self._pipeline: PipelineConfig = config.pipeline
        self._layers = split_layers(config.pipeline, self.config.num_layers)
        self._devices = stage_devices(config.pipeline, config.device)
        check_stage_devices(config, self._devices)

    def start(self, config: EngineConfig, plan: PoolPlan) -> PipelineRunner:
        """See `RemoteModel.start`."""
        shape, weights = self.config, self._weights
        specs = [
            StageSpec(
                stage=stage,
                num_stages=len(self._layers),
                weights=weights if isinstance(weights, RandomWeights) else str(weights.resolve()),
                layers=(layers.start, layers.stop),
                levels=config.levels,
                traced=plan.traced,
                num_blocks=plan.num_blocks,
                device=device,
                dtype=str(self.dtype).removeprefix("torch."),
                context_length=config.context_length,
                quantization=config.quantization,
                graph_memory=config.graph_memory,
                orders="",
                answers="",
                beats="",
                secret=b"",
                meeting="",
                backend="gloo" if torch.device(device).type == "cpu" else "nccl",
                tell_times=self._pipeline.tell_times,
            )
            for stage, (layers, device) in enumerate(zip(self._layers, self._devices, strict=True))
        ]
        return PipelineRunner(
            self._pipeline,
            self._layers,
            ordered(specs),
            shape=shape,
            dtype=self.dtype,
            plan=plan,
            block_bytes=bytes_per_block(
                shape.num_layers, shape.num_kv_heads, shape.head_dim, self.dtype, traced=plan.traced
            ),
        )
