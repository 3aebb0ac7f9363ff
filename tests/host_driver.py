"""An engine whose residents go to host memory when they leave the pool, for tests."""

from collections.abc import Sequence
from typing import Any

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine, HostResident
from agentkv_engine.reuse import Resident
from engine_driver import ALL_TRACED, block_bytes_of, keep, prompt_of, run, screened

AUTHOR, OTHER = prompt_of(100, seed=1), prompt_of(60, seed=2)


class Host:
    """What the middleware does: what leaves the pool goes to host memory, and comes back when it is missing."""

    def __init__(self, decoder, *, blocks: int, host_blocks: int, **options: Any) -> None:
        self.below: dict[int, HostResident] = {}
        self.came_up: list[Resident] = []
        block = block_bytes_of(decoder)
        self.engine = Engine(
            decoder,
            EngineConfig(
                kv_memory=blocks * block, host_kv_memory=host_blocks * block, trace_layers=ALL_TRACED, **options
            ),
            on_evict=self.evicted,
            on_missing=self.missing,
        )

    def evicted(self, handle: int) -> None:
        copy = self.engine.offload(handle)
        if copy is not None:
            self.below[handle] = copy

    def missing(self, handles: Sequence[int]) -> None:
        self.came_up += self.engine.restore([self.below[handle] for handle in handles])

    def keep_both(self) -> tuple[Resident, Resident]:
        first = keep(self.engine, AUTHOR, 10, 90, tenant="a")
        self.engine.release_finished()
        return first, keep(self.engine, OTHER, 5, 50, tenant="b")

    def fill(self) -> None:
        """A prompt that needs the whole pool."""
        pool = self.engine.memory().num_blocks
        run(self.engine, screened("big", prompt_of(16 * pool - 1, seed=9)))
