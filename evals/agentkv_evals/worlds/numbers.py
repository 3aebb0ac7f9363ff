"""Numbers spread over reports: families `total` (running sums), `count` (votes) and `maximum`.

Training also asks for single persons' numbers (`amount`), which teaches `maximum`; it is no family of the suite.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentkv_evals.worlds.cast import Entity, pick
from agentkv_evals.worlds.grammar import Sentence, ask, number_sentence
from agentkv_evals.worlds.thread import Draft, Probe

_TOTAL = ("How many {n} are there in all?", "What do the {n} add up to?")
_VOTES = ("How many votes has {x}?", "Count the votes for {x}.")
_AMOUNT = ("How many {n} has {x}?", "Tell us how many {n} {x} has.")
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


@dataclass(frozen=True, slots=True)
class _Holder:
    """Somebody who has a number of a thing: said outright, or against `other`, over `hops` references in all."""

    person: Entity
    number: int
    turn: int
    other: _Holder | None = None

    @property
    def hops(self) -> int:
        return self.other.hops + 1 if self.other else 0


def add_maximum(draft: Draft, depth: int) -> None:
    """Persons have 1 to 9 of a thing, most of them so many above or below somebody of an earlier report.

    The question is who has the most: the end of a chain of `depth` references, one a report, whose last step is small
    as its start is high. The others rest on no longer chains; one has little, and who is far above it looks as high.
    """
    rng, noun, turns = draft.rng, draft.cast.noun(), _some_turns(draft, depth + 1)
    numbers = sorted(rng.sample(range(1, 10), depth + 4 + int(rng.random() * 2)))
    most, little, before_most = numbers.pop(), numbers.pop(0), numbers.pop(-1 - int(rng.random() * 3))
    rng.shuffle(numbers)
    holders = [_Holder(draft.cast.person(), little, turns[0])]
    best = None
    for turn, number in zip(turns, [*numbers[: depth - 1], before_most, most], strict=True):
        best = _Holder(draft.cast.person(), number, turn, best)
        holders.append(best)
    for number in numbers[depth - 1 :]:
        first = turns[-1] if rng.random() < 0.6 else 0
        turn = first + int(rng.random() * (len(draft.turns) - first))
        holders.append(_Holder(draft.cast.person(), number, turn, _somebody_before(draft, holders, turn, depth)))
    for holder in holders:
        draft.insert(holder.turn, _number_of(draft, holder, noun))
        draft.probes.append(
            Probe(
                family="amount",
                depth=holder.hops,
                question=ask(rng, draft.split, _AMOUNT, n=noun, x=holder.person.word),
                answer=f"Answer: {holder.person.word} has{{ {holder.number}}} {noun}.",
            )
        )
    draft.probes.append(
        Probe(
            family="maximum",
            depth=depth,
            question=ask(rng, draft.split, _MOST, n=noun),
            answer=f"Answer:{{ {holders[depth + 1].person.word}}} has the most {noun}.",
        )
    )


def _somebody_before(draft: Draft, holders: list[_Holder], turn: int, depth: int) -> _Holder | None:
    """Whom a holder of this turn is compared with: rather one who has little, so that `above` tells nothing."""
    before = [holder for holder in holders if holder.turn < turn and holder.hops < depth]
    if not before or draft.rng.random() < 0.1:
        return None
    return min((pick(draft.rng, before) for _ in range(3)), key=lambda holder: holder.number)


def _number_of(draft: Draft, holder: _Holder, noun: str) -> Sentence:
    if holder.other is None:
        return _plain(f"{holder.person.word} has {holder.number} {noun}.")
    difference = holder.number - holder.other.number
    return number_sentence(draft.rng, draft.split, holder.person, holder.other.person, difference, noun)
