"""The mean of a prompt's last hidden states, gathered over the steps that compute it."""

from dataclasses import dataclass

import torch
from torch import Tensor


class PooledStates:
    """A sum that grows chunk by chunk, in float32. Preemption starts it anew, as it does the prompt's rows."""

    def __init__(self) -> None:
        self._sum_D: Tensor | None = None
        self._count = 0

    def add(self, states_ND: Tensor) -> None:
        """Add the states of N rows, each row of the prompt once."""
        total = states_ND.sum(0, dtype=torch.float32)
        self._sum_D = total if self._sum_D is None else self._sum_D + total
        self._count += len(states_ND)

    def add_sum(self, sum_D: Tensor, count: int) -> None:
        """Add rows whose states were summed elsewhere."""
        self._sum_D = sum_D if self._sum_D is None else self._sum_D + sum_D
        self._count += count

    def take_sum(self) -> Tensor | None:
        """The sum so far, which starts anew; None where nothing was added."""
        total = self._sum_D
        self.reset()
        return total

    def reset(self) -> None:
        """The rows will be computed again."""
        self._sum_D, self._count = None, 0

    def mean(self, num_rows: int) -> Tensor:
        """float32 [D] on CPU, once all rows of the prompt are in."""
        assert self._sum_D is not None
        assert self._count == num_rows, f"{self._count} of {num_rows} rows were pooled"
        return (self._sum_D / num_rows).cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledRows:
    """Rows of a step, all of full depth, whose last hidden states are pooled: indices on the device, and where."""

    rows: Tensor
    into: PooledStates
