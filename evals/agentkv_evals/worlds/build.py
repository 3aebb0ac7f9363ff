"""Makes one held-out or training item: a thread, its authors' contexts, one question of the wanted family and depth."""

from __future__ import annotations

import random
from collections.abc import Iterator

from agentkv_evals.worlds.cast import pick
from agentkv_evals.worlds.disputes import add_candidates, add_conflict
from agentkv_evals.worlds.grammar import Sentence, filler
from agentkv_evals.worlds.item import Item, Names, QuestionPosition, Topology, Turn
from agentkv_evals.worlds.listings import add_list, add_quote
from agentkv_evals.worlds.numbers import add_maximum, add_total, add_votes
from agentkv_evals.worlds.roles import Role, document_message, report, system_prompt
from agentkv_evals.worlds.split import SALT, VERSION, Split, is_held_out
from agentkv_evals.worlds.thread import Draft, Probe, Spec, grow

DEPTHS: dict[str, tuple[int, ...]] = {
    "lookup": (0,),
    "unknown": (0,),
    "chain": (1, 2, 3, 4),
    "update": (0, 1, 2, 3, 4),
    "swap": (1, 2, 3, 4),
    "ordinal": (0, 1, 2, 3, 4),
    "quote": (0, 1, 2, 3, 4),
    "contradiction": (0, 1, 2),
    "judge": (0, 1, 2, 3, 4),
    "total": (0, 1, 2, 3, 4),
    "count": (0, 1, 2, 3, 4),
    "maximum": (1, 2, 3, 4),
}
"""The families and the dependency depths at which each exists (contradiction: 0 none, 1 direct, 2 by a reference)."""

READERS: dict[str, Role] = {"contradiction": "critic", "judge": "judge"}
"""Which role answers a family's questions; the writer answers the others."""


def plain(marked: str) -> str:
    """An answer without the braces that mark its decisive words."""
    return marked.replace("{", "").replace("}", "")


def sizes(split: Split, least_turns: int) -> list[tuple[int, int]]:
    """The (turns, sentences) shapes of a split: 2-8 agents, 2-6 sentences each, some shapes never trained."""
    shapes = [(turns, lines) for turns in range(max(2, least_turns), 9) for lines in range(2, 7)]
    chosen = [shape for shape in shapes if is_held_out("size", f"{shape[0]}x{shape[1]}") == (split == "heldout")]
    return chosen or shapes


def make_item(
    *,
    family: str,
    depth: int,
    seed: int,
    split: Split = "heldout",
    question_position: QuestionPosition = "last",
    topology: Topology = "parallel",
    names: Names = "known",
    length: int = 0,
) -> Item:
    """The item of this description; the same arguments give the same item for one `VERSION`.

    With a `length` the reports are padded, to about so many tokens in all, with sentences that do not matter.

    Raises:
        KeyError: the family is unknown (see `DEPTHS`).
        RuntimeError: no world of this family and depth was found.
    """
    if depth not in DEPTHS[family]:
        raise KeyError(f"family {family} has depths {DEPTHS[family]}, not {depth}")
    longer = f"/{length}" if length else ""
    rng = random.Random(f"{SALT}/{split}/{family}/{depth}/{question_position}/{topology}/{names}/{seed}{longer}")
    for _ in range(2000):
        draft, candidates = _draft(rng, split, family, depth, names)
        wanted = [probe for probe in draft.probes if (probe.family, probe.depth) == (family, depth)]
        if wanted:
            pad(draft, length - SENTENCE_TOKENS * sum(len(lines) for lines in draft.turns))
            return _item(draft, candidates, pick(rng, wanted), seed, question_position, topology, names)
    raise RuntimeError(f"no world of family {family} and depth {depth} in 2000 tries: widen its sizes")


def _draft(rng: random.Random, split: Split, family: str, depth: int, names: Names) -> tuple[Draft, list[str]]:
    """A thread with what the family adds to it, and the candidates' messages (judge only)."""
    turns, lines = pick(rng, sizes(split, depth + 1))
    spec = Spec(
        turns=turns,
        sentences=lines,
        depth_cap=max(depth, 1),
        new_share=1.0 if names == "new" else 0.0,
        swap_share=0.15 if family == "swap" else 0.0,
        update_share=0.2 if family in ("update", "swap") else 0.1,
        canonical=rng.random() < 0.5,
    )
    draft = grow(rng, split, spec)
    candidates: list[str] = []
    if family in ADDERS:
        ADDERS[family](draft, depth)
    elif family == "judge":
        subjects = [probe for probe in draft.probes if probe.subject and probe.depth == depth]
        places = {state.place for state in draft.state.values()}
        if subjects and len(places) >= 2:
            candidates = add_candidates(draft, pick(rng, subjects), 2 + int(rng.random() * (min(4, len(places)) - 1)))
    return draft, candidates


ADDERS = {
    "ordinal": add_list,
    "quote": add_quote,
    "contradiction": add_conflict,
    "total": add_total,
    "maximum": add_maximum,
    "count": lambda draft, depth: add_votes(draft, depth + 1),
}
"""What each family adds to a thread of whereabouts, at a depth."""


SENTENCE_TOKENS = 9
"""About so many tokens has a sentence."""


def pad(draft: Draft, tokens: int) -> None:
    """Spread sentences of about `tokens` tokens that say nothing of the world over the thread's reports."""
    for _ in range(tokens // SENTENCE_TOKENS):
        text = filler(draft.rng)
        draft.insert(int(draft.rng.random() * len(draft.turns)), Sentence(text, text))


def report_turns(draft: Draft, topology: Topology) -> list[Turn]:
    """The thread's reports with what each author had read: its part of the document, and what the topology shows it."""
    count = len(draft.turns)
    sees: dict[Topology, list[tuple[int, ...]]] = {
        "parallel": [()] * count,
        "chain": [tuple(range(i)) for i in range(count)],
        "debate": [() if i < count // 2 else tuple(range(count // 2)) for i in range(count)],
    }
    return [
        Turn(
            author=f"researcher_{i + 1}",
            system=system_prompt(draft.rng, draft.split, "researcher", i + 1),
            source=document_message(i + 1, " ".join(document(draft, i))),
            sees=sees[topology][i],
            content=report(i + 1, [sentence.report for sentence in lines]),
        )
        for i, lines in enumerate(draft.turns)
    ]


def document(draft: Draft, turn: int) -> Iterator[str]:
    """The prose in which the author of a turn found its facts, padded with sentences that do not matter."""
    for sentence in draft.turns[turn]:
        if draft.rng.random() < 0.25:
            yield filler(draft.rng)
        yield sentence.prose


def candidate_turns(draft: Draft, candidates: list[str]) -> list[Turn]:
    """The candidates' messages; each candidate had read all reports and none of its rivals."""
    return [
        Turn(
            author=f"solver_{i + 1}",
            system=system_prompt(draft.rng, draft.split, "writer"),
            source="Give your candidate.",
            sees=tuple(range(len(draft.turns))),
            content=content,
        )
        for i, content in enumerate(candidates)
    ]


def _item(
    draft: Draft,
    candidates: list[str],
    probe: Probe,
    seed: int,
    question_position: QuestionPosition,
    topology: Topology,
    names: Names,
) -> Item:
    role = READERS.get(probe.family, "writer")
    system = system_prompt(draft.rng, draft.split, role)
    first = question_position == "first"
    return Item(
        version=VERSION,
        seed=seed,
        split=draft.split,
        family=probe.family,
        depth=probe.depth,
        topology=topology,
        question_position=question_position,
        names=names,
        message_role=pick(draft.rng, ("assistant", "user")),
        turns=(*report_turns(draft, topology), *candidate_turns(draft, candidates)),
        reader=role,
        reader_system=f"{system} {probe.question}" if first else system,
        instruction=None if first else probe.question,
        answer=plain(probe.answer),
    )
