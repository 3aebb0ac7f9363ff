"""One group of stages for many engines: starting processes takes seconds, an engine of its own does not."""

from pathlib import Path

import torch

from agentkv_engine.config import EngineConfig, PipelineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.pipeline.model import PipelineModel
from agentkv_engine.pipeline.runner import PipelineRunner
from agentkv_engine.runner.runner import PoolPlan
from engine_driver import ALL_TRACED, block_bytes_of

LEVELS = (1, 2, 3)
MOST_BLOCKS = 120


class SharedStages:
    """Implements `RemoteModel` over stages that run already; engines made of it one after the other use them all.

    An engine may have fewer blocks than the stages' pools.
    """

    def __init__(
        self,
        directory: Path,
        *,
        num_stages: int = 2,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        **options: float,
    ) -> None:
        self.pipeline = PipelineConfig(num_stages=num_stages, tell_times=True, **options)
        self._device, self._dtype = device, dtype
        self._model = PipelineModel(directory, EngineConfig(device=device, dtype=dtype, pipeline=self.pipeline))
        self.config, self.dtype = self._model.config, self._model.dtype
        self._engine = Engine(self._model, self.engine_config(MOST_BLOCKS))
        assert isinstance(self._engine._runner, PipelineRunner)
        self.runner = self._engine._runner

    def engine_config(self, num_blocks: int, **options) -> EngineConfig:
        """Settings of an engine over these stages, for a pool of so many blocks."""
        return EngineConfig(
            kv_memory=num_blocks * block_bytes_of(self),
            levels=LEVELS,
            trace_layers=ALL_TRACED,
            device=self._device,
            dtype=self._dtype,
            pipeline=self.pipeline,
            **options,
        )

    def start(self, config: EngineConfig, plan: PoolPlan) -> PipelineRunner:
        """See `RemoteModel.start`."""
        assert plan.num_blocks <= MOST_BLOCKS
        self.runner._forget()
        return self.runner

    def engine(self, num_blocks: int = 100, **options) -> Engine:
        """A new engine."""
        return Engine(self, self.engine_config(num_blocks, **options))

    def close(self) -> None:
        self._engine.close()
