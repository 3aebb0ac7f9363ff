"""Who and what a world is about: entities drawn without repetition, so that no two share a word or a syllable."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from agentkv_evals.worlds.split import Split, allowed
from agentkv_evals.worlds.words import NOUNS, OBJECTS, PERSON_SYLLABLES, PERSONS, PLACE_SYLLABLES, PLACES

Kind = Literal["person", "object"]
T = TypeVar("T")


def pick(rng: random.Random, options: list[T] | tuple[T, ...]) -> T:
    """One of the options, evenly (quicker than `rng.choice`, and part of the version: do not change it)."""
    return options[int(rng.random() * len(options))]


def _names(kind: str, halves: tuple[tuple[str, ...], tuple[str, ...]], split: Split) -> tuple[tuple[str, str], ...]:
    """The pairs of syllables that a split may use as names."""
    keys = allowed(kind, [f"{first}|{second}" for first in halves[0] for second in halves[1]], split)
    return tuple((key.split("|")[0], key.split("|")[1]) for key in keys)


NEW_PERSONS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": _names("person", PERSON_SYLLABLES, "train"),
    "heldout": _names("person", PERSON_SYLLABLES, "heldout"),
}
NEW_PLACES: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": _names("place", PLACE_SYLLABLES, "train"),
    "heldout": _names("place", PLACE_SYLLABLES, "heldout"),
}


class CastExhaustedError(RuntimeError):
    """A world asks for more names than there are words."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A person or a thing. `word` is its bare name."""

    word: str
    kind: Kind

    @property
    def reference(self) -> str:
        """The entity inside a sentence."""
        return self.word if self.kind == "person" else f"the {self.word}"

    @property
    def subject(self) -> str:
        """The entity at the start of a sentence."""
        return self.word if self.kind == "person" else f"The {self.word}"


@dataclass(slots=True)
class Cast:
    """Draws entities, places and nouns of one world; `new_share` of persons and places get names of two tokens."""

    rng: random.Random
    split: Split
    new_share: float
    used: set[str] = field(default_factory=set)

    def _fresh(self, options: tuple[str, ...]) -> str:
        for _ in range(200):
            if (word := pick(self.rng, options)) not in self.used:
                self.used.add(word)
                return word
        raise CastExhaustedError(f"{len(self.used)} words are in use: make the world smaller")

    def _fresh_pair(self, pairs: tuple[tuple[str, str], ...]) -> str | None:
        for _ in range(8):
            first, second = pick(self.rng, pairs)
            if first not in self.used and second not in self.used:
                self.used.update((first, second))
                return first + second
        return None

    def person(self) -> Entity:
        """A person nobody mentioned yet."""
        new = self._fresh_pair(NEW_PERSONS[self.split]) if self.rng.random() < self.new_share else None
        return Entity(new or self._fresh(PERSONS), "person")

    def thing(self) -> Entity:
        """An object nobody mentioned yet."""
        return Entity(self._fresh(OBJECTS), "object")

    def place(self) -> str:
        """A place nobody mentioned yet."""
        new = self._fresh_pair(NEW_PLACES[self.split]) if self.rng.random() < self.new_share else None
        return new or self._fresh(PLACES)

    def noun(self) -> str:
        """A plural noun nobody counted yet."""
        return self._fresh(NOUNS)
