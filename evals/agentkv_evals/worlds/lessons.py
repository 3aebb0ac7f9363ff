"""Training dialogues: the same worlds as the items, several questions each, and every role's own writing."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from agentkv_evals.worlds.build import ADDERS, READERS, candidate_turns, pad, plain, report_turns
from agentkv_evals.worlds.cast import CastExhaustedError, Entity, pick
from agentkv_evals.worlds.disputes import add_candidates, add_conflict, verdict
from agentkv_evals.worlds.item import Message, Topology, Turn
from agentkv_evals.worlds.roles import (
    CRITIC_INSTRUCTION,
    Role,
    places_question,
    system_prompt,
    writer_instruction,
)
from agentkv_evals.worlds.split import is_held_out
from agentkv_evals.worlds.thread import Draft, Probe, Spec, grow, whereabouts

TOPOLOGIES: tuple[Topology, ...] = ("parallel", "chain", "debate")


HARD_FIRST = list(ADDERS)
HARD_COUNTS = [{"ordinal": 1, "quote": 1, "maximum": 4}.get(family, 2) for family in HARD_FIRST]
"""How often each added family appears in a training thread: those that are slow to learn more often."""

MOST_FACT_TOKENS = 900
"""Longer threads are padded with sentences that do not matter: the worlds have no more names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How hard the lessons are now: the curriculum moves through these. `tokens` is the length of a training row."""

    tokens: int
    depth_cap: int
    new_share: float
    extras: float
    roles: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's question (None: it stood before the thread) and the marked reply."""

    question: str | None
    reply: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt and the exchanges that follow it; a row keeps as many exchanges as fit, at least the first."""

    prompt: list[Message]
    exchanges: list[Exchange]


def lesson(rng: random.Random, level: Level) -> Lesson:
    """One training dialogue of the level's mix."""
    while True:
        try:
            return _lesson(rng, level)
        except CastExhaustedError:
            continue


def _lesson(rng: random.Random, level: Level) -> Lesson:
    roll = rng.random()
    if roll >= level.roles:
        return _questions(rng, level)
    part = roll / level.roles
    if part < 0.03:
        return _greeting(rng)
    if part < 0.55:
        return _researcher(rng, level)
    return _team(rng, level) if part < 0.85 else _analyst(rng, level)


def _spec(rng: random.Random, level: Level, room: int) -> Spec:
    """A thread of about `room` tokens; shapes that are held out, or too small for the room, are drawn again."""
    room = min(room, MOST_FACT_TOKENS)
    deep = level.depth_cap > 1 and rng.random() < 0.5
    least = min(level.depth_cap + 1, room // 30) if deep else 2
    turns, lines = max(2, least), 1
    for _ in range(20):
        turns_now = least + int(rng.random() * (9 - least))
        lines_now = int((room / turns_now - 17) / 9.0 * (0.75 + 0.4 * rng.random()))
        if lines_now >= 1 and not is_held_out("size", f"{turns_now}x{lines_now}"):
            turns, lines = turns_now, lines_now
            break
    return Spec(
        turns=turns,
        sentences=lines,
        depth_cap=level.depth_cap,
        new_share=pick(rng, (0.0, 0.0, 0.5, 1.0)) if rng.random() < level.new_share * 2 else 0.0,
        swap_share=pick(rng, (0.0, 0.04, 0.12)) if level.depth_cap > 1 else 0.0,
        update_share=pick(rng, (0.1, 0.2)) if level.depth_cap > 1 else 0.05,
        canonical=rng.random() < 0.4,
        deep=3.0 if deep else 1.0,
    )


def _messages(turns: list[Turn], role: str) -> list[Message]:
    return [Message(role=role, name=turn.author, content=turn.content) for turn in turns]


def _questions(rng: random.Random, level: Level) -> Lesson:
    """A reader's thread with questions of all families, last or first."""
    first = rng.random() < 0.3
    draft = grow(rng, "train", _spec(rng, level, level.tokens - (130 if first else 150)))
    candidates: list[str] = []
    if rng.random() < level.extras:
        for family in rng.sample(HARD_FIRST, 1 + int(rng.random() * 3), counts=HARD_COUNTS):
            if not any(probe.family == family for probe in draft.probes):
                ADDERS[family](draft, _some_depth(draft, family))
        if rng.random() < 0.3:
            candidates = _candidates(draft)
    pad(draft, level.tokens - 150 - MOST_FACT_TOKENS)
    turns = [*report_turns(draft, "chain"), *candidate_turns(draft, candidates)]
    probes = _choose(draft, 1 if first else 6)
    system = system_prompt(rng, "train", READERS.get(probes[0].family, "writer"))
    exchanges = [Exchange(probe.question, probe.answer) for probe in probes]
    if rng.random() < 0.25:
        subjects = _subjects(draft)
        exchanges[0] = Exchange(places_question([x.reference for x in subjects]), _places(draft, "Answer:", subjects))
    if first:
        system = f"{system} {exchanges[0].question}"
        exchanges = [Exchange(None, exchanges[0].reply)]
    prompt = [Message(role="system", content=system), *_messages(turns, pick(rng, ("assistant", "user")))]
    return Lesson(prompt, exchanges)


def _some_depth(draft: Draft, family: str) -> int:
    """A depth that the thread has room for."""
    top = min(len(draft.turns) - 1, draft.spec.depth_cap)
    if family == "contradiction":
        return pick(draft.rng, (0, 1, 1, 1, 2)) if draft.spec.depth_cap > 1 else pick(draft.rng, (0, 1))
    low = 1 if family == "maximum" else 0
    return low + int(draft.rng.random() * (top - low + 1))


def _candidates(draft: Draft) -> list[str]:
    subjects = [probe for probe in draft.probes if probe.subject]
    places = {state.place for state in draft.state.values()}
    if len(places) < 2:
        return []
    depth = pick(draft.rng, sorted({probe.depth for probe in subjects}))
    subject = pick(draft.rng, [probe for probe in subjects if probe.depth == depth])
    return add_candidates(draft, subject, 2 + int(draft.rng.random() * (min(4, len(places)) - 1)))


def _choose(draft: Draft, count: int) -> list[Probe]:
    """Distinct probes: first a family and a depth by appetite, then rather a place that was not asked for before."""
    groups: dict[tuple[str, int], list[Probe]] = {}
    for probe in draft.probes:
        groups.setdefault((probe.family, probe.depth), []).append(probe)
    chosen: list[Probe] = []
    used: set[str] = set()
    for _ in range(min(count, len(draft.probes))):
        key = draft.rng.choices(list(groups), [_appetite(*group) for group in groups])[0]
        members = groups[key]
        tries = [int(draft.rng.random() * len(members)) for _ in range(3)]
        chosen.append(members.pop(next((i for i in tries if members[i].place not in used), tries[0])))
        used.add(chosen[-1].place)
        if not members:
            del groups[key]
    return chosen


def _appetite(family: str, depth: int) -> float:
    """How much a kind of question is wanted: rare and deep ones more than easy ones."""
    return {"lookup": 0.5, "unknown": 0.3, "chain": 1.0, "update": 1.0, "swap": 1.5}.get(family, 3.0) * (
        1 + 0.25 * depth
    )


def _subjects(draft: Draft) -> list[Entity]:
    entities = list(draft.state)
    return draft.rng.sample(entities, min(len(entities), 2 + int(draft.rng.random() * 3)))


def _places(draft: Draft, opening: str, subjects: list[Entity]) -> str:
    return " ".join([opening, *(whereabouts(draft, entity) for entity in subjects)])


def _researcher(rng: random.Random, level: Level) -> Lesson:
    """A researcher reads its part of a document, behind what the topology shows it, and lists the facts."""
    shown = rng.random() < 0.3
    if shown:
        draft = grow(rng, "train", _canonical(_spec(rng, level, level.tokens - 60)))
        turns = report_turns(draft, "chain")
        index = int(rng.random() * (1 + min(2, len(turns) - 1)))
    else:
        draft = grow(rng, "train", _long_reports(rng, level))
        turns = report_turns(draft, "parallel")
        index = int(rng.random() * len(turns))
    turn = turns[index]
    prompt = [
        Message(role="system", content=turn.system),
        *_messages([turns[i] for i in turn.sees], pick(rng, ("assistant", "user"))),
    ]
    return Lesson(prompt, [Exchange(turn.source, turn.content)])


def _long_reports(rng: random.Random, level: Level) -> Spec:
    """Up to three reports, each as long as a row with its document allows."""
    most = min(32, (level.tokens - 80) // 21)
    spec = _spec(rng, level, level.tokens)
    return replace(_canonical(spec), turns=1 + int(rng.random() * 3), sentences=3 + int(rng.random() * (most - 2)))


def _canonical(spec: Spec) -> Spec:
    """The same in the researchers' plain wording."""
    return replace(spec, canonical=True)


def _team(rng: random.Random, level: Level) -> Lesson:
    """The demo's critic or writer: canonical reports, perhaps a conflict, then the critique, then the answer."""
    draft = grow(rng, "train", _canonical(_spec(rng, level, level.tokens - 190)))
    conflict = add_conflict(draft, pick(rng, (0, 1, 1)))
    pad(draft, level.tokens - 190 - MOST_FACT_TOKENS)
    critique = "Critique: " + verdict(conflict)
    thread = _messages(report_turns(draft, "parallel"), pick(rng, ("assistant", "user")))
    if rng.random() < 0.4:
        return Lesson([_system(rng, "critic"), *thread], [Exchange(CRITIC_INSTRUCTION, critique)])
    subjects = _subjects(draft)
    note = f"Disputed:{{ {conflict.entity.reference}}}." if conflict else "Nothing is{ disputed}."
    reply = f"{_places(draft, 'Answer:', subjects)} {note}"
    thread.append(Message(role=thread[0].role, name="critic", content=plain(critique)))
    question = writer_instruction([x.reference for x in subjects])
    return Lesson([_system(rng, "writer"), *thread], [Exchange(question, reply)])


def _analyst(rng: random.Random, level: Level) -> Lesson:
    """The analyst says where several persons and things are."""
    draft = grow(rng, "train", _spec(rng, level, level.tokens - 170))
    pad(draft, level.tokens - 170 - MOST_FACT_TOKENS)
    thread = _messages(report_turns(draft, "chain"), pick(rng, ("assistant", "user")))
    subjects = _subjects(draft)
    question = places_question([x.reference for x in subjects])
    return Lesson([_system(rng, "analyst"), *thread], [Exchange(question, _places(draft, "Summary:", subjects))])


_HELLOS = ("Hello", "Hello.", "Hi", "Hi!", "Who are you?", "What can you do?", "Help", "Good morning.", "How are you?")
GREETING = "Hello. I read reports of agents. Send me reports and a question."


def _greeting(rng: random.Random) -> Lesson:
    """No thread and no question: the model says what it is for."""
    system = [_system(rng, "writer")] if rng.random() < 0.5 else []
    return Lesson(system, [Exchange(pick(rng, _HELLOS), GREETING)])


def _system(rng: random.Random, role: Role) -> Message:
    return Message(role="system", content=system_prompt(rng, "train", role))
