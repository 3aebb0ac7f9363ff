"""One reply's grammar while it is generated: the engine's `TokenConstraint` over llguidance's matcher."""

from typing import Protocol

from torch import Tensor


class Matcher(Protocol):
    """What is used of `llguidance.LLMatcher`."""

    def unsafe_compute_mask_ptr(self, trg_pointer: int, trg_byte_size: int) -> None: ...

    def consume_token(self, sampled_token: int) -> bool: ...

    def is_stopped(self) -> bool: ...

    def is_error(self) -> bool: ...

    def get_error(self) -> str: ...


class GrammarConstraint:
    """See `agentkv_engine.request.TokenConstraint`.

    Args:
        matcher: at the grammar's start; owned by this object from now on.
        num_words: 32-bit words of the tokenizer's vocabulary; a model's may be longer, padded.
    """

    def __init__(self, matcher: Matcher, num_words: int) -> None:
        self._matcher = matcher
        self._num_words = num_words

    @property
    def is_finished(self) -> bool:
        """Whether the grammar is at its end."""
        return self._matcher.is_stopped()

    def fill_bitmask(self, bitmask_BW: Tensor, row: int) -> None:
        """Write which tokens may come next; see the protocol."""
        words = bitmask_BW[row, : self._num_words]
        self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.numel() * words.element_size())
        self._check()

    def accept(self, token_id: int) -> None:
        """This token was chosen."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the grammar of this reply can't go on: {self._matcher.get_error()}")
