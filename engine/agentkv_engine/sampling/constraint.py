"""What a request's output must look like, token by token: the seam for grammars and JSON schemas."""

from typing import Protocol

from torch import Tensor


class TokenConstraint(Protocol):
    """Says which tokens may come next. One object serves one request: it moves on with what is sampled.

    A request that is preempted keeps its tokens, so its constraint is never asked to go back. The methods are called in
    the engine's thread; one that raises ends its request with `ConstraintFailed`, and no other.
    """

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow: the request ends with `stop` behind the token that was accepted last."""
        ...

    def fill_bitmask(self, bitmask_BW: Tensor, row: int) -> None:
        """Write which tokens may come next into one row of a bit mask.

        The request ends with `ConstraintFailed` where that is none. To let the output end before `is_finished`, allow
        one of the request's stop tokens.

        Args:
            bitmask_BW: int32 [batch, ceil(vocabulary / 32)] on the CPU, contiguous, all zero in this row: token t may
                come where bit t % 32 of word t // 32 is set (the layout of llguidance and xgrammar).
            row: which row is this request's.
        """
        ...

    def accept(self, token_id: int) -> None:
        """This token was chosen; a stop token, too."""
        ...
