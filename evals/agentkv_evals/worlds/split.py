"""What is held out of training: names, templates and lengths, decided by a hash, so that both sides agree forever."""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "heldout"]

VERSION = "worlds-2"
"""Changes whenever the same seed would give another world of any family."""

SALT = "worlds-1"
"""Feeds the hash of what is held out and the seeds of the worlds.

It outlives versions: names and templates that a model was trained on stay on training's side, and families that a
version does not touch keep their worlds.
"""

HELD_OUT_PERCENT = 15


def is_held_out(kind: str, key: str) -> bool:
    """Whether a name, a template or a length of this kind is kept away from training (15% of each kind).

    `kind` keeps the lists independent; `key` is the thing itself, for example `Bel|mik` or `Later|moved to the`.
    """
    digest = hashlib.blake2b(f"{SALT}/{kind}/{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def allowed(kind: str, keys: list[str], split: Split) -> list[str]:
    """The keys of a kind that a split may use: training only its own, held-out worlds only what training never saw."""
    return [key for key in keys if is_held_out(kind, key) == (split == "heldout")]
