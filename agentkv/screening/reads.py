"""What rows read most, layer by layer, and the importance that flows along it.

Shapes: N positions of a prompt and its reply, C keys of a row, R rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agentkv_engine.reuse import Observation

MOST_KEYS = 64
"""Keys of a row that are remembered: the others have less than 1/64 of its attention each."""

LEAST = 1e-6
"""Importance below which nothing flows on."""


class Reads:
    """Head-mean attention of the rows that have been looked at, the most read keys of each.

    Args:
        num_layers: of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self._layers = [_LayerReads() for _ in range(num_layers)]

    def put(self, layer: int, observation: Observation, positions: Sequence[int]) -> None:
        """Look at these rows in a layer; what was known of them is replaced."""
        shares_RC, keys_RC = observation.most_read(layer, positions, MOST_KEYS)
        self._layers[layer].put(torch.as_tensor(positions), shares_RC, keys_RC)

    def flow(self, sources: range) -> Tensor:
        """Importance of what these rows read, directly or through other rows, [sources.stop].

        imp(source) = 1; layer by layer from the top f[l,i] = sum_j A[l,j,i]^2 imp_j and imp_i = max(imp_i, f[l,i]),
        A the head-mean attention, j the rows looked at. What is returned is sum_l sqrt(f[l,i]).
        """
        importance_N, total_N = torch.zeros(sources.stop), torch.zeros(sources.stop)
        importance_N[sources.start :] = 1
        for layer in reversed(self._layers):
            flow_N = layer.flow(importance_N)
            total_N += flow_N.sqrt()
            importance_N = torch.maximum(importance_N, flow_N)
        return total_N


class _LayerReads:
    """The same in one layer: rows in the order in which they came, found by position."""

    def __init__(self) -> None:
        self._row_of_N = torch.full((0,), -1)
        self._positions_R = torch.empty(0, dtype=torch.int64)
        self._shares_RC = torch.empty(0, MOST_KEYS)
        self._keys_RC = torch.empty(0, MOST_KEYS, dtype=torch.int64)

    def put(self, positions_R: Tensor, shares_RC: Tensor, keys_RC: Tensor) -> None:
        """Replace or add rows."""
        size = int(positions_R.max()) + 1
        if size > len(self._row_of_N):
            more = torch.full((2 * size - len(self._row_of_N),), -1)
            self._row_of_N = torch.cat([self._row_of_N, more])
        new = self._row_of_N[positions_R] < 0
        num_rows = len(self._positions_R)
        self._row_of_N[positions_R[new]] = torch.arange(num_rows, num_rows + int(new.sum()))
        self._positions_R = torch.cat([self._positions_R, positions_R[new]])
        self._shares_RC = torch.cat([self._shares_RC, shares_RC[new].cpu()])
        self._keys_RC = torch.cat([self._keys_RC, keys_RC[new].cpu()])
        old = self._row_of_N[positions_R[~new]]
        self._shares_RC[old], self._keys_RC[old] = shares_RC[~new].cpu(), keys_RC[~new].cpu()

    def flow(self, importance_N: Tensor) -> Tensor:
        """sum_j A[j,i]^2 imp_j."""
        here = self._positions_R < len(importance_N)
        rows = torch.nonzero(here & (importance_N[self._positions_R.clamp(max=len(importance_N) - 1)] > LEAST))[:, 0]
        weights_RC = self._shares_RC[rows].square() * importance_N[self._positions_R[rows]].unsqueeze(1)
        return torch.zeros_like(importance_N).index_add_(0, self._keys_RC[rows].flatten(), weights_RC.flatten())
