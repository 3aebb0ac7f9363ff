"""The demo's case: a held-out world as a document in three parts, and every agent's words in the trained form.

Use: `case = demo_case(seed)`. Run each researcher on `[system, user: task]`; the critic on
`[system, the three reports, user: task]`; the writer on `[system, the three reports, the critique, user: task]`, where
reports and critique are messages with the author's name (role user or assistant: the model was trained on both).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from agentkv_evals.worlds.build import document, plain
from agentkv_evals.worlds.disputes import add_conflict, verdict
from agentkv_evals.worlds.roles import (
    CANONICAL,
    CRITIC_INSTRUCTION,
    document_message,
    places_question,
    report,
    researcher_prompt,
    writer_instruction,
)
from agentkv_evals.worlds.split import SALT, Split
from agentkv_evals.worlds.thread import Spec, family_of, grow, whereabouts

PARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAgent:
    """An agent: its label, its system prompt, its task (the last user message), and the reply that would be right."""

    name: str
    system: str
    task: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCase:
    """A document in three parts and the agents that work on it; `depth` is the longest chain the writer must follow."""

    seed: int
    title: str
    parts: tuple[str, str, str]
    researchers: tuple[DemoAgent, DemoAgent, DemoAgent]
    critic: DemoAgent
    writer: DemoAgent
    analyst: DemoAgent
    depth: int


def demo_case(seed: int, *, sentences: int = 12, conflict: bool = True, split: Split = "heldout") -> DemoCase:
    """A case of about `sentences` statements a part; with `conflict` two parts contradict each other once.

    Among the subjects that the writer is asked for are those that rest on the most references to other parts.
    """
    rng = random.Random(f"{SALT}/demo/{split}/{seed}/{sentences}/{conflict}")
    spec = Spec(
        turns=PARTS, sentences=sentences, depth_cap=2, swap_share=0.0, update_share=0.12, canonical=True, deep=3.0
    )
    draft = grow(rng, split, spec)
    dispute = add_conflict(draft, 1 if conflict else 0)
    parts = [" ".join(document(draft, i)) for i in range(PARTS)]
    reports = [report(i + 1, [sentence.report for sentence in lines]) for i, lines in enumerate(draft.turns)]
    entities = [entity for entity in draft.state if family_of(draft, entity) != "swap"]
    rng.shuffle(entities)
    subjects = sorted(entities, key=lambda entity: -draft.state[entity].hops)[:2] + entities[:1]
    subjects = list(dict.fromkeys(subjects))
    references = [entity.reference for entity in subjects]
    places = " ".join(plain(whereabouts(draft, entity)) for entity in subjects)
    note = f"Disputed: {dispute.entity.reference}." if dispute else "Nothing is disputed."
    agents = [
        DemoAgent(
            name=f"researcher_{i + 1}",
            system=researcher_prompt(i + 1),
            task=document_message(i + 1, parts[i]),
            expected=reports[i],
        )
        for i in range(PARTS)
    ]
    return DemoCase(
        seed=seed,
        title=places_question(references),
        parts=(parts[0], parts[1], parts[2]),
        researchers=(agents[0], agents[1], agents[2]),
        critic=DemoAgent(
            name="critic",
            system=CANONICAL["critic"],
            task=CRITIC_INSTRUCTION,
            expected="Critique: " + plain(verdict(dispute)),
        ),
        writer=DemoAgent(
            name="writer",
            system=CANONICAL["writer"],
            task=writer_instruction(references),
            expected=f"Answer: {places} {note}",
        ),
        analyst=DemoAgent(
            name="analyst",
            system=CANONICAL["analyst"],
            task=places_question(references),
            expected=f"Summary: {places}",
        ),
        depth=max(draft.state[entity].hops for entity in subjects),
    )
