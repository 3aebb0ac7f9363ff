"""Anchors of a text: a thin, content-defined choice of its 8-character strings.

Winnowing (Schleimer, Wilkerson and Aiken, SIGMOD 2003): of every `WINDOW` consecutive strings of `GRAM` characters the
one with the smallest hash is an anchor. So two texts that share `GUARANTEE` characters share an anchor, wherever the
stretch stands, and about two strings in nine are anchors. Characters, not words or bytes: Chinese counts too.
"""

import numpy as np
from numpy.typing import NDArray

GRAM = 8
WINDOW = 8
GUARANTEE = GRAM + WINDOW - 1

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)


def anchors(text: str) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Places (in characters, ascending) and hashes of the text's anchors; none for fewer than `GUARANTEE` characters.

    A hash that repeats without another between (repeated characters) is given once. Linear in the text.
    """
    if len(text) < GUARANTEE:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    num_grams = len(characters) - GRAM + 1
    hashes = np.zeros(num_grams, np.uint64)
    for offset in range(GRAM):
        hashes *= _MULTIPLIER
        hashes += characters[offset : offset + num_grams]
    hashes ^= hashes >> _SHIFT
    hashes *= _MIXER
    hashes ^= hashes >> _SHIFT
    smallest = _sliding(hashes, np.minimum)
    # A gram is an anchor if it is the smallest of *some* window: the largest minimum of the windows it stands in is it.
    edge = WINDOW - 1
    padded = np.concatenate([np.zeros(edge, np.uint64), smallest, np.zeros(edge, np.uint64)])
    places = np.flatnonzero(_sliding(padded, np.maximum) == hashes)
    chosen = hashes[places]
    fresh = np.append(True, chosen[1:] != chosen[:-1])
    return places[fresh], chosen[fresh]


def _sliding(values: NDArray[np.uint64], reduce: np.ufunc) -> NDArray[np.uint64]:
    """Minimum or maximum of every `WINDOW` (a power of two) consecutive values, by doubling."""
    width = 1
    while width < WINDOW:
        values = reduce(values[:-width], values[width:])
        width *= 2
    return values
