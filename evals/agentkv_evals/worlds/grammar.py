"""The controlled English of the worlds: events as report sentences and as a document's prose.

The grammar keeps what is said about a subject two to four tokens behind it, so that a small model can learn to read it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from agentkv_evals.worlds.cast import Entity, pick
from agentkv_evals.worlds.split import Split, allowed

_ADJUNCTS = ("", "", "", "Today ", "Then ", "Later ", "Now ")
_PUT = ("is in the", "stays in the", "sits in the", "waits in the")
_PUT_THING = ("is in the", "lies in the", "stands in the")
_MOVE = ("moved to the", "went to the", "came to the")
_JOIN = ("is with", "joined", "sits with", "met", "followed")
_JOIN_THING = ("is with", "lies with")
_REJOIN = ("joined", "followed", "went to")
_FIND = ("found", "took")
_PROSE_LEADS = ("", "", "After lunch ", "That day ", "As usual ", "In the end ", "By chance ")
_PROSE = {
    "put": ("{x} is in the {p}", "{x} spends the day in the {p}", "people see {x} in the {p}"),
    "move": ("{x} moved to the {p}", "{x} leaves for the {p}", "people see that {x} went to the {p}"),
    "join": ("{x} joined {y}", "{x} comes to stay with {y}", "people see {x} with {y}"),
    "swap": ("{x} swapped places with {y}", "people see that {x} swapped places with {y}"),
}
_CANON = {
    "put": "{x} is in the {p}",
    "move": "{x} moved to the {p}",
    "join": "{x} is with {y}",
    "swap": "{x} swapped places with {y}",
}
_FILLER_PARTS = (
    ("The wind", "The sky", "The road", "The music", "The bread", "The weather", "The light", "The fire"),
    ("was", "seemed", "looked", "stayed"),
    ("cold", "grey", "quiet", "pleasant", "strange", "poor", "bright", "calm"),
    ("that day", "for hours", "as always", "in the morning", "until night"),
)


def _combinations(kind: str, verbs: tuple[str, ...], split: Split) -> tuple[tuple[str, str], ...]:
    """Pairs of adjunct and verb that a split may use; an adjunct that is listed often stays likely."""
    keys = set(allowed(f"template/{kind}", sorted({f"{a}|{v}" for a in _ADJUNCTS for v in verbs}), split))
    pairs = tuple((a, v) for a in _ADJUNCTS for v in verbs if f"{a}|{v}" in keys)
    return pairs or tuple(("", verb) for verb in verbs)


_VERBS = {
    "put/person": _PUT,
    "put/object": _PUT_THING,
    "move/person": _MOVE,
    "move/object": _MOVE,
    "join/person": _JOIN,
    "join/object": _JOIN_THING,
    "rejoin/person": _REJOIN,
    "rejoin/object": ("went to",),
    "find/person": _FIND,
    "swap/person": ("swapped places with",),
    "swap/object": ("swapped places with",),
    "number/person": ("is", "stays", "stands"),
}
TEMPLATES: dict[Split, dict[str, tuple[tuple[str, str], ...]]] = {
    "train": {kind: _combinations(kind, verbs, "train") for kind, verbs in _VERBS.items()},
    "heldout": {kind: _combinations(kind, verbs, "heldout") for kind, verbs in _VERBS.items()},
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One statement: as a report gives it, and as the author's document told it."""

    report: str
    prose: str


def _opened(adjunct: str, entity: Entity) -> str:
    """The subject behind its adjunct, if there is one."""
    return adjunct + entity.reference if adjunct else entity.subject


def place_sentence(
    rng: random.Random, split: Split, act: str, x: Entity, place: str, canonical: bool, correction: bool = False
) -> Sentence:
    """`x` is in a place (act `put`) or moves there (act `move`); a correction overrides like a move."""
    if correction:
        text = f"Correction: {x.reference} is in the {place}."
        return Sentence(text, text)
    if canonical:
        report = _CANON[act].format(x=x.subject, p=place)
    else:
        adjunct, verb = pick(rng, TEMPLATES[split][f"{act}/{x.kind}"])
        report = f"{_opened(adjunct, x)} {verb} {place}"
    return Sentence(report + ".", _prose(rng, act, x, place, x))


def link_sentence(rng: random.Random, split: Split, act: str, x: Entity, y: Entity, canonical: bool) -> Sentence:
    """`x` comes to where `y` is now (acts `join`, `rejoin`), or trades places with it (act `swap`)."""
    shape = "swap" if act == "swap" else "join"
    if canonical:
        report = _CANON[shape].format(x=x.subject, y=y.reference)
    else:
        kind = "find" if act == "join" and x.kind == "person" and y.kind == "object" else act
        adjunct, verb = pick(rng, TEMPLATES[split][f"{kind}/{x.kind}"])
        report = f"{_opened(adjunct, x)} {verb} {y.reference}"
    return Sentence(report + ".", _prose(rng, shape, x, "", y))


def number_sentence(rng: random.Random, split: Split, x: Entity, y: Entity, difference: int, noun: str) -> Sentence:
    """`x` has so many more (or, below zero, fewer) of a thing than `y`."""
    adjunct, verb = pick(rng, TEMPLATES[split]["number/person"])
    side = "above" if difference > 0 else "below"
    text = f"{_opened(adjunct, x)} {verb} {abs(difference)} {side} {y.reference} in {noun}."
    return Sentence(text, text)


def _prose(rng: random.Random, act: str, x: Entity, place: str, y: Entity) -> str:
    lead, shape = pick(rng, _PROSE_LEADS), pick(rng, _PROSE[act])
    first = shape.startswith("{x}")
    text = lead + shape.format(x=x.subject if first and not lead else x.reference, y=y.reference, p=place)
    return text[0].upper() + text[1:] + "."


def filler(rng: random.Random) -> str:
    """A sentence of a document that no report mentions."""
    return " ".join(pick(rng, part) for part in _FILLER_PARTS) + "."


_PREFIX = ("", "", "Question: ", "Read the reports. ", "Use the reports above. ")
_SUFFIX = ("", "", " Answer in one sentence.", " Be brief.")
WHERE = ("Where is {x}?", "Where is {x} now?", "In which place is {x}?", "Tell us where {x} is.")


def ask(rng: random.Random, split: Split, cores: tuple[str, ...], **slots: str) -> str:
    """A question in one of its wordings; a fixed share of prefix, core and suffix combinations is held out."""
    prefix, core, suffix = pick(rng, _wordings(cores, split))
    return prefix + core.format(**slots) + suffix


@cache
def _wordings(cores: tuple[str, ...], split: Split) -> tuple[tuple[str, str, str], ...]:
    """The wordings a split may use of these cores (all of them, should the hash leave it none)."""
    every = [(prefix, core, suffix) for prefix in _PREFIX for core in cores for suffix in _SUFFIX]
    keys = set(allowed("question", sorted({"|".join(wording) for wording in every}), split))
    return tuple(wording for wording in every if "|".join(wording) in keys) or tuple(every)
