"""Plain texts in which something is hidden, for `ruler`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Count = Callable[[str], int]
"""Tokens of a text."""

_SUBJECTS = "The harbour, the road, the market, the library, the bridge, the garden, the station, the river, the school"
_VERBS = (
    "is quiet, was built long ago, opens at nine, looks the same, is near the town, needs some paint, is well known"
)
_MOODS = "today, this year, as before, in the evening, after the rain, in the spring, most of the time"
_KEYS = """
amber apple arrow badge basil birch candle canvas cedar cello clover copper coral cotton dagger falcon feather flint
garnet ginger hammer hazel ivory jasmine kettle ladder lantern lemon linen magnet maple marble needle olive onyx orchid
paper pebble pepper pillow plum quartz raven ribbon saddle saffron silver sparrow tulip velvet walnut willow zinc
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The agents' messages, what is asked, and the strings that a right reply holds."""

    texts: tuple[str, ...]
    question: str
    answers: tuple[str, ...]


def _needle(draws: random.Random, agents: int, tokens: int, count: Count) -> Asked:
    key, value = draws.choice(_KEYS.split()), _number(draws)
    hidden: list[list[str]] = [[] for _ in range(agents)]
    draws.choice(hidden).append(_special(key, value))
    return Asked(texts=_filled(draws, hidden, tokens, count), question=_asks_special(key), answers=(value,))


def _multikey(draws: random.Random, agents: int, tokens: int, count: Count) -> Asked:
    each = max(tokens // 64, 1)
    every = _KEYS.split()
    keys = draws.sample(every, min(agents * each, len(every)))
    values = {key: _number(draws) for key in keys}
    hidden = [[_special(key, values[key]) for key in keys[n::agents]] for n in range(agents)]
    wanted = draws.choice(keys)
    return Asked(texts=_filled(draws, hidden, tokens, count), question=_asks_special(wanted), answers=(values[wanted],))


def _tracking(draws: random.Random, agents: int, tokens: int, count: Count) -> Asked:
    """Two chains of variables; each agent sets one of each from the agent's before it."""
    names = draws.sample([f"{a}{b}{c}" for a in "KLMNP" for b in "RSTVW" for c in "XYZ"], 2 * agents)
    chains, values = (names[:agents], names[agents:]), (_number(draws), _number(draws))
    hidden: list[list[str]] = []
    for n in range(agents):
        lines = []
        for chain, value in zip(chains, values, strict=True):
            lines.append(f"VAR {chain[n]} = {value}." if n == 0 else f"VAR {chain[n]} = VAR {chain[n - 1]}.")
        hidden.append(draws.sample(lines, len(lines)))
    return Asked(
        texts=_filled(draws, hidden, tokens, count),
        question=f"Which variables have the value {values[0]}? Name all of them.",
        answers=tuple(chains[0]),
    )


def _words(draws: random.Random, agents: int, tokens: int, count: Count) -> Asked:
    """Lists of words without sentences: three come in every message several times, the others once or twice."""
    every = _KEYS.split()
    draws.shuffle(every)
    common, rare = every[:3], every[3:]
    texts = []
    for _ in range(agents):
        words: list[str] = []
        while count(_listed(words)) < tokens:
            words += [*common, *draws.sample(rare, 3)]
        draws.shuffle(words)
        texts.append(_listed(words))
    return Asked(
        texts=tuple(texts),
        question="Which three words come most often in all reports together?",
        answers=tuple(common),
    )


def _listed(words: Sequence[str]) -> str:
    return "Words: " + ", ".join(words) + "."


def _special(key: str, value: str) -> str:
    return f"The special number of {key} is {value}."


def _asks_special(key: str) -> str:
    return f"What is the special number of {key}?"


def _number(draws: random.Random) -> str:
    return str(draws.randint(10_000, 99_999))


def _filled(draws: random.Random, hidden: Iterable[Sequence[str]], tokens: int, count: Count) -> tuple[str, ...]:
    """Messages of about so many tokens each: the hidden sentences in their order, plain ones around them."""
    return tuple(_fill(draws, lines, tokens, count) for lines in hidden)


def _fill(draws: random.Random, lines: Sequence[str], tokens: int, count: Count) -> str:
    missing = tokens - count(" ".join(lines))
    plain: list[str] = []
    while missing > 0:
        plain.append(
            " ".join(draws.choice(part.split(", ")) for part in (_SUBJECTS, _VERBS, _MOODS)).capitalize() + "."
        )
        missing -= count(" " + plain[-1])
    places = sorted(draws.randint(0, len(plain)) for _ in lines)
    for place, line in reversed(list(zip(places, lines, strict=True))):
        plain.insert(place, line)
    return " ".join(plain)


TEXTS: dict[str, Callable[[random.Random, int, int, Count], Asked]] = {
    "needle": _needle,
    "multikey": _multikey,
    "tracking": _tracking,
    "words": _words,
}
"""The families, and how each is written: draws, agents, tokens of a message, and how tokens are counted."""
