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

_DOUBLINGS = tuple((1 << k, np.uint64(pow(0x9E3779B97F4A7C15, 1 << k, 1 << 64))) for k in range(3))
"""From hashes of so many characters to those of twice as many, up to `GRAM`: of a polynomial, a power of whose base."""
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)


def anchors(text: str) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Places (in characters, ascending) and hashes of a text's anchors; none for fewer than `GUARANTEE` characters."""
    grams = gram_hashes(text)
    places = anchor_places(grams)
    return places, grams[places]


def gram_hashes(text: str) -> NDArray[np.uint64]:
    """Hash of the `GRAM` characters from each place on, as far as there are so many; none for fewer than `GUARANTEE`
    characters."""
    if len(text) < GUARANTEE:
        return np.zeros(0, np.uint64)
    hashes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    for width, multiplier in _DOUBLINGS:
        hashes = hashes[:-width] * multiplier + hashes[width:]
    hashes ^= hashes >> _SHIFT
    hashes *= _MIXER
    hashes ^= hashes >> _SHIFT
    return hashes


def anchor_places(grams: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places of the anchors among a text's grams, ascending.

    A hash that repeats without another between (repeated characters) is given once. Linear in the text.
    """
    if not len(grams):
        return np.zeros(0, np.int64)
    smallest = _sliding(grams, np.minimum)
    # A gram is an anchor if it is the smallest of *some* window: the largest minimum of the windows it stands in is it.
    padded = np.zeros(len(grams) + WINDOW - 1, np.uint64)
    padded[WINDOW - 1 : len(grams)] = smallest
    places = (_sliding(padded, np.maximum) == grams).nonzero()[0]
    chosen = grams[places]
    fresh = np.ones(len(places), bool)
    np.not_equal(chosen[1:], chosen[:-1], out=fresh[1:])
    return places[fresh]


def _sliding(values: NDArray[np.uint64], reduce: np.ufunc) -> NDArray[np.uint64]:
    """Minimum or maximum of every `WINDOW` (a power of two) consecutive values, by doubling."""
    width = 1
    while width < WINDOW:
        values = reduce(values[:-width], values[width:])
        width *= 2
    return values
