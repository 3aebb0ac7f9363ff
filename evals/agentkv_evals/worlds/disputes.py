"""Reports that contradict each other, and candidates among which a judge chooses: families `contradiction`, `judge`."""

from __future__ import annotations

from dataclasses import dataclass

from agentkv_evals.worlds.cast import Entity, pick
from agentkv_evals.worlds.grammar import ask, link_sentence, place_sentence
from agentkv_evals.worlds.thread import Draft, Probe

AGREE = ("Do the reports agree?", "Do the reports contradict each other?", "Name what the reports disagree about.")
RIGHT = ("Which candidate is right?", "Choose the right candidate.")


@dataclass(frozen=True, slots=True)
class Conflict:
    """An entity that two reports place differently."""

    entity: Entity
    places: tuple[str, str]


def add_conflict(draft: Draft, depth: int) -> Conflict | None:
    """Two reports say different things of one entity (depth 1), or one of them says it by a reference (depth 2).

    Depth 0 adds no conflict. In each case some facts are repeated without contradiction, so that repetition alone
    proves nothing.
    """
    rng, split, canonical = draft.rng, draft.split, draft.spec.canonical
    _repeat_facts(draft)
    conflict = None
    if depth:
        first = int(rng.random() * (len(draft.turns) - 1))
        second = first + 1 + int(rng.random() * (len(draft.turns) - first - 1))
        x, places = draft.cast.person(), (draft.cast.place(), draft.cast.place())
        if depth == 2:
            host = draft.cast.person()
            behind = draft.insert(first, place_sentence(rng, split, "put", host, places[0], canonical))
            draft.insert(first, link_sentence(rng, split, "join", x, host, True), behind)
        else:
            draft.insert(first, place_sentence(rng, split, "put", x, places[0], canonical))
        draft.insert(second, place_sentence(rng, split, "put", x, places[1], canonical))
        conflict = Conflict(x, places)
    draft.probes.append(
        Probe(
            family="contradiction",
            depth=depth,
            question=ask(rng, split, AGREE),
            answer="Critique: " + verdict(conflict),
        )
    )
    return conflict


def verdict(conflict: Conflict | None) -> str:
    """What a critic says of a conflict or of its absence, decisive words marked."""
    if conflict is None:
        return "The reports{ agree}."
    a, b = conflict.places
    return f"The reports{{ disagree}} about{{ {conflict.entity.reference}}}: the{{ {a}}} or the{{ {b}}}."


def _repeat_facts(draft: Draft) -> None:
    """One or two facts that nothing changed are said again in a later report."""
    still = [
        (entity, state)
        for entity, state in draft.state.items()
        if state.events == 1 and not state.sources and state.turn < len(draft.turns) - 1
    ]
    for _ in range(min(len(still), 1 + int(draft.rng.random() * 2))):
        entity, state = pick(draft.rng, still)
        turn = state.turn + 1 + int(draft.rng.random() * (len(draft.turns) - state.turn - 1))
        sentence = place_sentence(draft.rng, draft.split, "put", entity, state.place, draft.spec.canonical)
        draft.insert(turn, sentence)


def add_candidates(draft: Draft, subject: Probe, count: int) -> list[str]:
    """`count` candidate answers about one probe's subject, one of them right; returns what the candidates write."""
    rng = draft.rng
    others = sorted({state.place for state in draft.state.values()} - {subject.place})
    rng.shuffle(others)
    assert subject.subject is not None
    places = [subject.place, *others[: count - 1]]
    rng.shuffle(places)
    right = places.index(subject.place) + 1
    draft.probes.append(
        Probe(
            family="judge",
            depth=subject.depth,
            question=ask(rng, draft.split, RIGHT),
            answer=f"Verdict: {subject.subject.subject} is in the{{ {subject.place}}}. Candidate{{ {right}}} is right.",
            subject=subject.subject,
        )
    )
    return [f"Candidate {i + 1}: {subject.subject.subject} is in the {place}." for i, place in enumerate(places)]
