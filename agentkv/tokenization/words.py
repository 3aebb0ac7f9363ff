"""Token ids of a text, put together from those of its words.

A byte-level BPE cuts a text into words by a regular expression before anything else, and then each word by itself into
tokens. Nearly all of its time goes into cutting, and into words that it has seen before. So the same expression is run
here by another engine, several times as fast, and the tokens of words are remembered.

The engines must agree: only expressions of constructs that mean the same to both are taken, and only characters that
have been in Unicode since long before either (newer ones are letters to one and unknown to the other), or are emoji.
All else is left to the tokenizer.
"""

import json
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from threading import Lock
from typing import Any

import regex
from tokenizers import Tokenizer
from tokenizers.models import BPE

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` cuts with where it is not told otherwise."""

_CLASS = r"\\p\{[A-Z][a-z]?\}|\\[srnS]"
_ATOM = rf"(?:{_CLASS}|\[\^?(?:{_CLASS}|[\w/])+\]|[\w' /])"
_QUANTIFIER = r"(?:[?*+]|\{\d+,\d+\})?(?![?*+{])"
_SAME_TO_BOTH = re.compile(rf"(?:(?:{_ATOM}|\)){_QUANTIFIER}|\||\(\?(?:i:|!|:))+")
_MOST_CHARACTERS = 64
"""Of a word that is remembered."""


class Words:
    """The words of one tokenizer. Thread-safe.

    Words are remembered per tenant: no tenant can learn from a fast answer which words another has used.

    Args:
        tokenizer: cuts words into tokens.
        pattern: cuts texts into words.
        added: texts of added tokens, which the tokenizer finds before it cuts.
        normalises: it brings texts into NFC first.
        max_words: most words remembered; the tenant that asked longest ago loses all of its own first.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pattern: str,
        *,
        added: Iterable[str] = (),
        normalises: bool = False,
        max_words: int = 1 << 18,
    ) -> None:
        self._tokenizer = tokenizer
        self._cut = regex.compile(pattern).findall
        longest_first = sorted(added, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._normalises = normalises
        self._max_words = max_words
        self._num_words = 0
        self._tenants: OrderedDict[str, dict[str, tuple[int, ...]]] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Words | None":
        """Those of a tokenizer that cuts texts into words as is said above; None for any other."""
        pattern, normaliser = _pattern(_state(tokenizer.pre_tokenizer)), _state(tokenizer.normalizer)
        model = tokenizer.model
        if (
            pattern is None
            or normaliser.get("type") not in (None, "NFC")
            or not isinstance(model, BPE)
            or model.dropout
        ):
            return None
        added = tokenizer.get_added_tokens_decoder().values()
        found = (token.content for token in added if not (token.special and tokenizer.encode_special_tokens))
        return cls(tokenizer, pattern, added=found, normalises=bool(normaliser))

    @property
    def num_words(self) -> int:
        """Words remembered now."""
        return self._num_words

    def encode(self, text: str, tenant: str = "") -> list[int] | None:
        """Ids of a text; None where it has to be left to the tokenizer."""
        if not (text.isascii() or self._is_settled(text)) or (self._added and self._added.search(text)):
            return None
        words = self._cut(text)
        if sum(map(len, words)) != len(text):
            return None
        with self._lock:
            known = self._tenants.setdefault(tenant, {})
            self._tenants.move_to_end(tenant)
        try:
            return list(chain.from_iterable(map(known.__getitem__, words)))
        except KeyError:
            new = self._tokenise(sorted({word for word in words if word not in known}))
        if new is None:
            return None
        self._remember(tenant, known, new)
        both = {**known, **new}
        return list(chain.from_iterable(map(both.__getitem__, words)))

    def _is_settled(self, text: str) -> bool:
        if self._normalises and not unicodedata.is_normalized("NFC", text):
            return False
        return all(map(is_settled, set(text)))

    def _tokenise(self, words: list[str]) -> dict[str, tuple[int, ...]] | None:
        """Ids of each word; None where one is no word by itself."""
        if any(self._cut(word) != [word] for word in words):
            return None
        encodings = self._tokenizer.encode_batch_fast(words, add_special_tokens=False)
        return {word: tuple(encoding.ids) for word, encoding in zip(words, encodings, strict=True)}

    def _remember(self, tenant: str, known: dict[str, tuple[int, ...]], new: dict[str, tuple[int, ...]]) -> None:
        with self._lock:
            if self._tenants.get(tenant) is not known:  # forgotten meanwhile
                return
            before = len(known)
            known.update((word, ids) for word, ids in new.items() if len(word) <= _MOST_CHARACTERS)
            self._num_words += len(known) - before
            while self._num_words > self._max_words:
                self._num_words -= len(self._tenants.popitem(last=False)[1])


@lru_cache(maxsize=1 << 16)
def is_settled(character: str) -> bool:
    """Whether a character was in Unicode 3.2, or is an emoji: no version of Unicode says anything else of it."""
    return unicodedata.ucd_3_2_0.category(character) != "Cn" or 0x1F000 <= ord(character) < 0x1FB00


def _pattern(pre_tokenizer: dict[str, Any]) -> str | None:
    """The expression by which a byte-level tokenizer cuts; None where it does anything else, or one that the engines
    may read differently."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    match steps:
        case [{"use_regex": True}]:
            return _GPT2
        case [{"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": str(pattern)}}, last]:
            return pattern if not last["use_regex"] and _SAME_TO_BOTH.fullmatch(pattern) else None
        case _:
            return None


def _state(part: Any) -> dict[str, Any]:
    """What a part of a tokenizer is, as tokenizer.json says it; empty where there is none."""
    return {} if part is None else json.loads(part.__getstate__())
