"""The protocol of attention back ends, and the one place that chooses among them."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.cache.kv_pool import KVPool

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
