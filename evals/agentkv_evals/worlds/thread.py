"""Threads of reports about who is where: events in the order of reading, with the truth after each of them.

A reference means what it meant *when it was said*: "Mara joined Ivo" puts Mara where Ivo was then, and a later move of
Ivo does not move her. So references must be resolved while reading, which is what careless KV reuse breaks.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from agentkv_evals.worlds.cast import Cast, Entity, pick
from agentkv_evals.worlds.grammar import WHERE, Sentence, ask, link_sentence, place_sentence
from agentkv_evals.worlds.split import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The size and the difficulty of a thread; `deep` is how much long chains are preferred to empty places."""

    turns: int
    sentences: int
    depth_cap: int
    new_share: float = 0.0
    swap_share: float = 0.03
    update_share: float = 0.2
    canonical: bool = False
    deep: float = 1.0


@dataclass(slots=True)
class Whereabouts:
    """What is true of an entity now. `hops` counts the references to earlier turns that its place rests on."""

    place: str
    hops: int
    turn: int
    events: int = 1
    swapped: bool = False
    tainted: bool = False
    sources: tuple[Entity, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question that a thread answers. `answer` marks its decisive words with braces, for the training's loss."""

    family: str
    depth: int
    question: str
    answer: str
    subject: Entity | None = None
    place: str = ""


@dataclass(slots=True)
class Draft:
    """A thread in the making: sentences by turn, the state of the world, and the questions it can answer."""

    rng: random.Random
    split: Split
    spec: Spec
    cast: Cast
    turns: list[list[Sentence]] = field(default_factory=list)
    state: dict[Entity, Whereabouts] = field(default_factory=dict)
    probes: list[Probe] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def insert(self, turn: int, sentence: Sentence, after: int = 0) -> int:
        """Put a sentence at a random place of a turn, not before index `after`; returns the index behind it."""
        lines = self.turns[turn]
        index = after + int(self.rng.random() * (len(lines) - after + 1))
        lines.insert(index, sentence)
        return index + 1


def grow(rng: random.Random, split: Split, spec: Spec) -> Draft:
    """A thread of `spec.turns` reports, each of about `spec.sentences` sentences, and its whereabouts probes."""
    draft = Draft(rng, split, spec, Cast(rng, split, spec.new_share))
    for turn in range(spec.turns):
        draft.turns.append([])
        for _ in range(max(1, spec.sentences + int(rng.random() * 3) - 1)):
            draft.turns[turn].append(_event(draft, turn))
    draft.probes.extend(whereabouts_probe(draft, entity) for entity in draft.state)
    draft.probes.append(_unknown_probe(draft))
    return draft


def _unknown_probe(draft: Draft) -> Probe:
    """A question about somebody whom the thread does not mention."""
    stranger = draft.cast.person() if draft.rng.random() < 0.7 else draft.cast.thing()
    return Probe(
        family="unknown",
        depth=0,
        question=ask(draft.rng, draft.split, WHERE, x=stranger.reference),
        answer=f"Answer: {stranger.subject} is{{ not}} in the reports.",
    )


def _event(draft: Draft, turn: int) -> Sentence:
    """One thing that happens: somebody appears, comes to somebody, moves on, or trades places."""
    rng, spec, roll = draft.rng, draft.spec, draft.rng.random()
    if len(draft.state) < 2 or roll < 0.35 - 0.1 * min(turn, 2):
        return _appear(draft, turn)
    if roll < 1 - spec.update_share - spec.swap_share:
        return _come_to(draft, turn, None)
    mover = pick(rng, list(draft.state))
    if roll < 1 - spec.swap_share:
        return _come_to(draft, turn, mover) if rng.random() < 0.25 else _move(draft, turn, mover)
    return _swap(draft, turn, mover)


def _new_entity(draft: Draft) -> Entity:
    return draft.cast.person() if draft.rng.random() < 0.7 else draft.cast.thing()


def _some_place(draft: Draft, other_than: str | None = None) -> str:
    """A place: mostly a new one, now and then one that was named before."""
    known = [place for place in draft.places if place != other_than]
    if known and draft.rng.random() < 0.25:
        return pick(draft.rng, known)
    draft.places.append(draft.cast.place())
    return draft.places[-1]


def _appear(draft: Draft, turn: int) -> Sentence:
    x, place = _new_entity(draft), _some_place(draft)
    draft.state[x] = Whereabouts(place, 0, turn)
    return place_sentence(draft.rng, draft.split, "put", x, place, draft.spec.canonical)


def _move(draft: Draft, turn: int, x: Entity) -> Sentence:
    old = draft.state[x]
    place = _some_place(draft, old.place)
    draft.state[x] = Whereabouts(place, 0, turn, old.events + 1, tainted=True)
    correction = draft.rng.random() < 0.25
    return place_sentence(draft.rng, draft.split, "move", x, place, draft.spec.canonical, correction)


def _come_to(draft: Draft, turn: int, mover: Entity | None) -> Sentence:
    """A new entity, or `mover`, comes to another one: rather far along a chain, rather where few are."""
    rng, old = draft.rng, draft.state.get(mover) if mover else None
    sources = [
        (state.hops + (state.turn != turn), entity)
        for entity, state in draft.state.items()
        if state.hops + (state.turn != turn) <= draft.spec.depth_cap and entity != mover
    ]
    if not sources or (mover and not old):
        return _appear(draft, turn)
    tries = [pick(rng, sources) for _ in range(3)]
    crowd = Counter(state.place for state in draft.state.values())
    lonely_depth = max(tries, key=lambda pair: draft.spec.deep * pair[0] - 0.7 * crowd[draft.state[pair[1]].place])
    hops, y = lonely_depth if rng.random() < 0.75 else tries[0]
    if mover is not None and mover.kind == "person" and y.kind == "object":
        return _move(draft, turn, mover)
    x = mover or (draft.cast.thing() if y.kind == "object" and rng.random() < 0.5 else _new_entity(draft))
    source = draft.state[y]
    draft.state[x] = Whereabouts(
        source.place, hops, turn, old.events + 1 if old else 1, source.swapped, bool(old), (*source.sources, y)
    )
    return link_sentence(rng, draft.split, "rejoin" if old else "join", x, y, draft.spec.canonical)


def _swap(draft: Draft, turn: int, x: Entity) -> Sentence:
    """Two entities trade places; each then rests on what the other's place rested on."""
    a = draft.state[x]
    partners = [
        y
        for y, b in draft.state.items()
        if y.kind == x.kind and b.place != a.place and max(b.hops + (b.turn != turn), a.hops + (a.turn != turn)) <= 4
    ]
    if not partners:
        return _move(draft, turn, x)
    y = pick(draft.rng, partners)
    b = draft.state[y]
    draft.state[x] = Whereabouts(b.place, b.hops + (b.turn != turn), turn, a.events + 1, True, True, (*b.sources, y))
    draft.state[y] = Whereabouts(a.place, a.hops + (a.turn != turn), turn, b.events + 1, True, True, (*a.sources, x))
    return link_sentence(draft.rng, draft.split, "swap", x, y, draft.spec.canonical)


def family_of(draft: Draft, entity: Entity) -> str:
    """`swap`, `update` (somebody on the way has other, stale places), `chain` or `lookup`."""
    now = draft.state[entity]
    if now.swapped:
        return "swap"
    if now.events > 1 or any(draft.state[source].events > 1 for source in now.sources):
        return "update"
    return "chain" if now.sources else "lookup"


def whereabouts_probe(draft: Draft, entity: Entity) -> Probe:
    """Where an entity is at the end of the thread."""
    now = draft.state[entity]
    return Probe(
        family=family_of(draft, entity),
        depth=now.hops,
        question=ask(draft.rng, draft.split, WHERE, x=entity.reference),
        answer="Answer: " + whereabouts(draft, entity),
        subject=entity,
        place=now.place,
    )


def whereabouts(draft: Draft, entity: Entity) -> str:
    """The sentence that says where an entity is, with the place marked."""
    return f"{entity.subject} is in the{{ {draft.state[entity].place}}}."
