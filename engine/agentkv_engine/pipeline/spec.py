"""What a stage's process is told when it starts."""

from typing import Literal

import msgspec

from agentkv_engine.cache.row_traces import TracedShape
from agentkv_engine.model.random_weights import RandomWeights


class StageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a group.

    Attributes:
        stage, num_stages: its place.
        weights: directory of the checkpoint, of which it reads its own layers; or what is drawn instead.
        layers: first and behind the last.
        levels, traced: of the whole model.
        num_blocks: of every stage's pool.
        graph_memory: bytes that captured CUDA graphs may take at each stage.
        orders, answers, beats: endpoints of the driver's sockets.
        secret: that both ends know.
        meeting: a file of this group's own, where stages find each other.
        backend: of torch.distributed.
        tell_times: whether it tells of each step's times.
    """

    stage: int
    num_stages: int
    weights: str | RandomWeights
    layers: tuple[int, int]
    levels: tuple[int, ...] | None
    traced: TracedShape | None
    num_blocks: int
    device: str
    dtype: str
    context_length: int | None
    quantization: Literal["int8"] | None
    graph_memory: int
    orders: str
    answers: str
    beats: str
    secret: bytes
    meeting: str
    backend: Literal["gloo", "nccl"]
    tell_times: bool
