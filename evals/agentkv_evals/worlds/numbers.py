"""Numbers spread over reports: families `total` (running sums), `count` (votes) and `maximum`."""

from __future__ import annotations

from agentkv_evals.worlds.cast import pick
from agentkv_evals.worlds.grammar import Sentence, ask
from agentkv_evals.worlds.thread import Draft, Probe

_TOTAL = ("How many {n} are there in all?", "What do the {n} add up to?")
_VOTES = ("How many votes has {x}?", "Count the votes for {x}.")
_MOST = ("Who has the most {n}?", "Tell us who has the most {n}.")


def _plain(text: str) -> Sentence:
    return Sentence(text, text)


def _some_turns(draft: Draft, count: int) -> list[int]:
    return sorted(draft.rng.sample(range(len(draft.turns)), count))


def add_total(draft: Draft, depth: int) -> None:
    """`depth` + 1 reports each add 1 to 5 of a thing; the question is the sum."""
    rng, noun, total = draft.rng, draft.cast.noun(), 0
    for turn in _some_turns(draft, depth + 1):
        number = 1 + int(rng.random() * 5)
        total += number
        draft.insert(turn, _plain(f"The {noun} grow by {number}."))
    draft.probes.append(
        Probe(
            family="total",
            depth=depth,
            question=ask(rng, draft.split, _TOTAL, n=noun),
            answer=f"Answer: The {noun} add up to{{ {total}}}.",
        )
    )


def add_votes(draft: Draft, votes: int) -> None:
    """Every report votes for one of two or three things; `votes` of them for the thing that is asked about."""
    rng = draft.rng
    things = [draft.cast.thing() for _ in range(2 + int(rng.random() * 2))]
    chosen = set(_some_turns(draft, votes))
    for turn in range(len(draft.turns)):
        if turn in chosen or rng.random() < 0.8:
            thing = things[0] if turn in chosen else pick(rng, things[1:])
            draft.insert(turn, _plain(f"{thing.subject} gets our vote."))
    draft.probes.append(
        Probe(
            family="count",
            depth=min(votes - 1, 4),
            question=ask(rng, draft.split, _VOTES, x=things[0].reference),
            answer=f"Answer: {things[0].subject} has{{ {votes}}} votes.",
        )
    )


def add_maximum(draft: Draft, depth: int) -> None:
    """`depth` + 1 persons in as many reports have 1 to 9 of a thing; the question is who has the most."""
    rng, noun = draft.rng, draft.cast.noun()
    numbers = rng.sample(range(1, 10), depth + 1)
    persons = [draft.cast.person() for _ in numbers]
    for turn, person, number in zip(_some_turns(draft, depth + 1), persons, numbers, strict=True):
        draft.insert(turn, _plain(f"{person.word} has {number} {noun}."))
    best = persons[numbers.index(max(numbers))]
    draft.probes.append(
        Probe(
            family="maximum",
            depth=depth,
            question=ask(rng, draft.split, _MOST, n=noun),
            answer=f"Answer:{{ {best.word}}} has the most {noun}.",
        )
    )
