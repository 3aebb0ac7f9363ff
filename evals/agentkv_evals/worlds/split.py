"""What is held out of training: names, templates and lengths, decided by a hash, so that both sides agree forever."""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "heldout"]

VERSION = "worlds-1"
"""Changes whenever the same seed would give another world."""

HELD_OUT_PERCENT = 15


def is_held_out(kind: str, key: str) -> bool:
    """Whether a name, a template or a length of this kind is kept away from training (15% of each kind).

    `kind` keeps the lists independent; `key` is the thing itself, for example `Bel|mik` or `Later|moved to the`.
    """
    digest = hashlib.blake2b(f"{VERSION}/{kind}/{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def allowed(kind: str, keys: list[str], split: Split) -> list[str]:
    """The keys of a kind that a split may use: training only its own, held-out worlds only what training never saw."""
    return [key for key in keys if is_held_out(kind, key) == (split == "heldout")]
