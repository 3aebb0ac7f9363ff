"""The bytes behind each token: streaming, exact decoding and character offsets all follow from them.

A token of a byte-level BPE is a string of bytes, possibly a part of a character. Knowing these bytes, a stream never
shows half a character (an incremental UTF-8 decoder holds it back), and a token's place in a text is a sum of lengths.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agentkv.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBES = ("Hello, world!\n  x = 42", "naïve 日本語 👩‍🚀", " a\tb ")


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, inverted: printable bytes stand for themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + rank): byte for rank, byte in enumerate(others)})
    return alphabet


class _Looked(dict[int, bytes]):
    """Remembers what `look_up` says of a token."""

    def __init__(self, look_up: Callable[[int], bytes]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, token_id: int) -> bytes:
        self[token_id] = found = self._look_up(token_id)
        return found


class TokenBytes:
    """Bytes of every token of a tokenizer, looked up as they are needed.

    Raises `ModelError` at construction when the tokenizer's decoder is neither byte-level nor SentencePiece's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = byte_level_alphabet()
        self._added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._byte_level = "ByteLevel" in repr(tokenizer.decoder)
        self._bytes = _Looked(self._look_up)
        self.strips_first_space = not self._byte_level and not tokenizer.decode(self._ids(" a")).startswith(" ")
        self._check()

    def __getitem__(self, token_id: int) -> bytes:
        """Bytes of a token; those of a special token are its text. A padding id without a token has none."""
        return self._bytes[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether decoding leaves the token out."""
        return token_id in self._special

    def join(self, token_ids: Iterable[int]) -> bytes:
        """Bytes of the tokens, special ones left out."""
        return b"".join([self[i] for i in token_ids if i not in self._special])

    def offsets(self, token_ids: Sequence[int], text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
        """Character offsets [start, end) of each token in `text`, or None where the tokens' bytes are not those of it.

        A token that holds a part of a character covers the whole of it, as in `tokenizers.Encoding.offsets`.
        """
        pieces = list(map(self._bytes.__getitem__, token_ids))
        encoded = text.encode()
        if b"".join(pieces) != encoded:
            return None
        edges = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=edges[1:])
        starts, ends = edges[:-1], edges[1:]
        if len(encoded) == len(text):  # a byte a character
            return starts.astype(np.int32), ends.astype(np.int32)
        leads = (np.frombuffer(encoded, np.uint8) & 0xC0) != 0x80
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(leads)])  # characters begun before each byte
        whole = np.append(leads, True)
        return (before[starts] - ~whole[starts]).astype(np.int32), before[ends].astype(np.int32)

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if not self._byte_level:
            match = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode()
        try:
            return bytes([self._alphabet[char] for char in token])
        except KeyError:
            return token.encode()

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _check(self) -> None:
        for text in _PROBES:
            ids = self._ids(text)
            ours = self.join(ids).decode(errors="replace")
            if (ours.removeprefix(" ") if self.strips_first_space else ours) != self._tokenizer.decode(ids):
                raise ModelError(
                    f"tokenizer.json decodes with {self._tokenizer.decoder!r}, which is not supported: use a model "
                    "whose tokenizer is byte-level BPE (Llama 3, Qwen) or SentencePiece's"
                )


class Detokenizer:
    """Turns a stream of token ids into text, never half a character. O(1) a token.

    The concatenation of everything returned is what `ChatTokenizer.decode` gives for all the ids at once.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = token_bytes.strips_first_space

    def feed(self, token_ids: Iterable[int]) -> str:
        """Text that is complete now; what belongs to a character still open is held back."""
        return self._decode(self._token_bytes.join(token_ids), final=False)

    def finish(self) -> str:
        """The rest: a replacement character where the stream ended inside a character, else empty."""
        return self._decode(b"", final=True)

    def bytes_of(self, token_id: int) -> bytes:
        """Bytes of one token, which may be a part of a character; those of a special token are its text."""
        return self._token_bytes[token_id]

    def _decode(self, data: bytes, *, final: bool) -> str:
        text = self._decoder.decode(data, final)
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
