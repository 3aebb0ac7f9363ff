"""The depths that an engine allows, and which slot list a layer reads."""

from bisect import bisect_left
from copy import copy

import numpy as np

from agentkv_engine.config import MAX_LEVELS


class Levels:
    """Depths d1 < d2 < ... = num_layers. A planned depth rounds up to one of them.

    Raises:
        ValueError: levels that are not ascending, too many, or do not end with the number of layers.
    """

    def __init__(self, depths: tuple[int, ...] | None, num_layers: int) -> None:
        self.depths = depths if depths is not None else (num_layers,)
        self.num_layers = num_layers
        ascending = list(self.depths) == sorted(set(self.depths)) and self.depths[:1] > (0,)
        if not ascending or self.depths[-1] != num_layers or len(self.depths) > MAX_LEVELS:
            raise ValueError(
                f"levels {self.depths} must be at most {MAX_LEVELS} ascending depths from 1, the last being the "
                f"model's {num_layers} layers"
            )

    def __len__(self) -> int:
        return len(self.depths)

    def of_stage(self, layers: range) -> "Levels":
        """The same lists as a stage sees them that numbers its layers from 0: all depths are less by those before it.
        A row of depth 0 or more there only arrives; one of a depth beyond its layers goes on to the next stage."""
        stage = copy(self)
        stage.depths = tuple(depth - layers.start for depth in self.depths)
        stage.num_layers = len(layers)
        return stage

    def round_up(self, depths_N: np.ndarray) -> np.ndarray:
        """The smallest allowed depths that are not below these."""
        allowed = np.asarray(self.depths)
        return allowed[np.searchsorted(allowed, depths_N)]

    def num_lists(self, depths_N: np.ndarray) -> np.ndarray:
        """In how many slot lists, counted from the lowest layers, a row of each allowed depth puts its private slot."""
        return np.searchsorted(np.asarray(self.depths), depths_N) + 1

    def list_of_layer(self, layer: int) -> int:
        """The slot list that this layer reads: rows of depth >= layer have written in it."""
        return bisect_left(self.depths, layer)

    def list_of_queries(self, layer: int) -> int:
        """The slot list in which stood the rows that attended in this layer: those of depth > layer."""
        return bisect_left(self.depths, layer + 1)
