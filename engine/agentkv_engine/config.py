"""Settings of one engine. Nothing else in the engine reads the environment."""

from dataclasses import dataclass
from typing import Literal

import torch

BLOCK_SIZE = 16
"""Slots in a block: the unit of allocation and of reference counts."""

MAX_LEVELS = 8
"""Most distinct depths an engine may be configured with: attention metadata is built once a level."""

GIB = 1 << 30

Quantization = Literal["int8"]
"""In what weights may lie beside floating point."""


Budget = Literal["fixed", "throttling"]
"""How the rows of a step are limited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """How a model is spread over processes of this host.

    Attributes:
        num_stages: processes, each with a stretch of layers.
        devices: of each stage; empty is the engine's device, on GPUs one after the other.
        layers: how many layers each stage has; empty is alike.
        steps_under_way: steps that may be ordered before the first has come back; None is as many as stages. One more
            hides the driver's own time, and its steps share the sequences that decode among one more.
        silence: seconds without a sign of life after which a stage counts as lost.
        grace: seconds that a step may take beyond several times what steps of its size have taken.
        tell_times: whether stages tell when they did what in each step, for benchmarks.

    Raises:
        ValueError: less than one stage or step, or times that are not above 0.
    """

    num_stages: int
    devices: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    steps_under_way: int | None = None
    silence: float = 4.0
    grace: float = 5.0
    tell_times: bool = False

    def __post_init__(self) -> None:
        if self.num_stages < 1 or min(self.silence, self.grace) <= 0 or self.most_under_way < 1:
            raise ValueError(
                f"num_stages is {self.num_stages}, steps_under_way {self.steps_under_way}, silence {self.silence}, "
                f"grace {self.grace}: give 1 stage or more, 1 step or more, and times above 0"
            )

    @property
    def most_under_way(self) -> int:
        """Steps that may be ordered before the first has come back."""
        return self.num_stages if self.steps_under_way is None else self.steps_under_way


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine.

    Attributes:
        kv_memory: bytes of KV that the pool may hold.
        max_rows_per_step: token budget of a step: prefill chunks, decodes, probes and repairs together.
        budget: `fixed` fills every step up to that; `throttling` gives prefill and decode budgets of their own, which
            follow the load (see `scheduler.token_throttling`), prefill at most `max_rows_per_step`.
        max_sequences: most sequences that run at once.
        context_length: most tokens of a sequence; None takes the model's.
        levels: depths a repair may have, ascending; the last must be the number of layers; None is full depth only.
        device: where weights and KV live, e.g. `cpu` or `cuda`.
        dtype: of weights and KV; None takes float32 on CPU (with `quantization`, bfloat16 where the processor has it)
            and bfloat16 on an accelerator.
        quantization: `int8` keeps weights in 8 bits, on CPU only; None keeps them in `dtype`.
        trace_layers: layers in which every row leaves its query and a sketch of what it read beside its keys: selectors
            can ask reused rows there what this context changes for them, without running them. Those that the model
            does not have are left out.
        graph_memory: bytes that captured CUDA graphs of small steps may take; 0 captures none.
        host_kv_memory: bytes of host memory, page-locked beside a GPU, to which residents can be copied
            (`Engine.offload`); 0 takes none.
        pipeline: spread the layers over processes; None runs them in this one.

    Raises:
        ValueError: a count below 1, a layer below 0, or bytes below 0.
    """

    kv_memory: int = 1 * GIB
    max_rows_per_step: int = 1024
    budget: Budget = "fixed"
    max_sequences: int = 64
    context_length: int | None = None
    levels: tuple[int, ...] | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None
    quantization: Quantization | None = None
    trace_layers: tuple[int, ...] = ()
    graph_memory: int = 1 * GIB
    host_kv_memory: int = 0
    pipeline: PipelineConfig | None = None

    def __post_init__(self) -> None:
        if min(self.max_rows_per_step, self.max_sequences) < 1:
            raise ValueError(
                f"max_rows_per_step is {self.max_rows_per_step} and max_sequences {self.max_sequences}: give at least 1"
            )
        if min(self.trace_layers, default=0) < 0:
            raise ValueError(f"trace_layers {self.trace_layers} names a layer below 0")
        if self.host_kv_memory < 0:
            raise ValueError(f"host_kv_memory is {self.host_kv_memory}: give 0 or more bytes")
