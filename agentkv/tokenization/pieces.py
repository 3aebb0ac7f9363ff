"""Token ids of texts that were tokenised before: a bounded memory, one per tenant and text."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from agentkv.tokenization.token_bytes import TokenBytes
from agentkv.tokenization.words import Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A tokenised text of T tokens.

    Attributes:
        token_ids, starts, ends: int32 [T]; token t stands for the characters [starts[t], ends[t]) of the text. A token
            that holds a part of a character covers the whole of it.
        faithful: whether the tokens' bytes are exactly the text's, so that pieces can be put together.
    """

    token_ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    faithful: bool = True


class PieceCache:
    """Tokenises texts, and remembers up to `max_tokens` tokens of them, the least recently used leaving first.

    Keys are the texts themselves (no hash is trusted) beside their tenant: one tenant can't learn from a fast answer
    that another has sent the same text. Thread-safe; tokenising itself runs outside the lock.
    """

    def __init__(self, tokenizer: Tokenizer, token_bytes: TokenBytes, *, max_tokens: int = 1 << 20) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._words = Words.of(tokenizer)
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._pieces: OrderedDict[tuple[str, str], Piece] = OrderedDict()
        self._lock = Lock()

    @property
    def num_tokens(self) -> int:
        """Tokens remembered now."""
        return self._num_tokens

    def encode(self, texts: Sequence[str], tenant: str = "") -> dict[str, Piece]:
        """A piece for each distinct text."""
        found: dict[str, Piece] = {}
        missing: list[str] = []
        with self._lock:
            for text in dict.fromkeys(texts):
                piece = self._pieces.get((tenant, text))
                if piece is None:
                    missing.append(text)
                else:
                    self._pieces.move_to_end((tenant, text))
                    found[text] = piece
        if missing:
            new = self._from_words(missing, tenant)
            left = [text for text in missing if text not in new]
            encodings = self._tokenizer.encode_batch(left, add_special_tokens=False) if left else ()
            new |= {text: self.piece(text, encoding) for text, encoding in zip(left, encodings, strict=True)}
            self._add(new, tenant)
            found.update(new)
        return found

    def _from_words(self, texts: Sequence[str], tenant: str) -> dict[str, Piece]:
        """Pieces of those texts that need not go to the tokenizer as a whole."""
        new: dict[str, Piece] = {}
        if self._words is None:
            return new
        for text in texts:
            ids = self._words.encode(text, tenant)
            offsets = None if ids is None else self._token_bytes.offsets(ids, text)
            if offsets is not None:
                new[text] = Piece(token_ids=np.asarray(ids, np.int32), starts=offsets[0], ends=offsets[1])
        return new

    def piece(self, text: str, encoding: Encoding) -> Piece:
        """The piece of an encoding, with offsets that follow from the tokens' bytes where these are the text's."""
        ids = encoding.ids
        offsets = self._token_bytes.offsets(ids, text)
        if offsets is None:  # a normaliser changed the text; the tokenizer knows where its tokens came from
            pairs = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
            return Piece(token_ids=np.asarray(ids, np.int32), starts=pairs[:, 0], ends=pairs[:, 1], faithful=False)
        return Piece(token_ids=np.asarray(ids, np.int32), starts=offsets[0], ends=offsets[1])

    def _add(self, pieces: dict[str, Piece], tenant: str) -> None:
        with self._lock:
            for text, piece in pieces.items():
                if (tenant, text) not in self._pieces:
                    self._pieces[tenant, text] = piece
                    self._num_tokens += len(piece.token_ids)
            while self._num_tokens > self._max_tokens and self._pieces:
                _, oldest = self._pieces.popitem(last=False)
                self._num_tokens -= len(oldest.token_ids)
