"""The protocol of attention back ends, and the one place that chooses among them."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from agentkv_engine.attention.cpu_rows import CpuRows
from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.attention.sdpa import SdpaBackend
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.rope import RotaryEmbedding

Prepared = TypeVar("Prepared")


class AttentionBackend(Protocol[Prepared]):
    """Attention of a step's rows over keys in the pool; every back end equals `SdpaBackend` (tests/conformance)."""

    def prepare(self, sequences: Sequence[SequenceRows]) -> Prepared:
        """Metadata for the device, built once for all layers in which these rows attend to these slots."""
        ...

    def attend(self, q_AHD: Tensor, layer: int, pool: KVPool, prepared: Prepared) -> Tensor:
        """Attend.

        Args:
            q_AHD: queries [attending rows, heads, head_dim], rotated at their positions.
            layer: whose keys.
            pool: where they lie.
            prepared: what `prepare` gave.

        Returns:
            [attending rows, heads, head_dim], the dtype of the queries.
        """
        ...


def choose_backend(
    config: ModelConfig, rope: RotaryEmbedding, dtype: torch.dtype, device: str
) -> AttentionBackend[Any]:
    """Triton's kernels on CUDA, where Triton is installed and the heads suit them; else torch's attention."""
    if torch.device(device).type == "cpu":
        return CpuRows(rope)
    powers = config.head_dim >= 16 and config.head_dim & (config.head_dim - 1) == 0
    if torch.device(device).type != "cuda" or not powers or find_spec("triton") is None:
        return SdpaBackend(rope, device)
    from agentkv_engine.attention.triton_rows import TritonRows  # noqa: PLC0415 (Triton comes with torch for CUDA)

    return TritonRows(
        rope,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=device,
    )
