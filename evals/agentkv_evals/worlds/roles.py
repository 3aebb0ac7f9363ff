"""The five roles and their instructions, in the wordings that the embedded model is trained on."""

from __future__ import annotations

import random
from typing import Literal

from agentkv_evals.worlds.cast import pick
from agentkv_evals.worlds.split import Split, allowed

Role = Literal["researcher", "analyst", "critic", "judge", "writer"]

_DUTIES: dict[Role, tuple[str, ...]] = {
    "researcher": ("List the facts of your document.", "You read one part of a document. List its facts."),
    "analyst": ("Combine the reports of the others.", "You read all reports and say where everyone is."),
    "critic": ("Find what the reports disagree about.", "You read all reports. Find contradictions between them."),
    "judge": ("Choose the right candidate.", "You read the reports and judge the candidates."),
    "writer": ("Answer from the reports.", "You read all reports and answer the question."),
}
_OPENINGS = ("You are the {r}.", "You are the {r} of a team.", "You work as the {r}.", "Your role: {r}.")
_MANNERS = ("", " Be exact.", " Use short sentences.", " Say only what the thread says.", " Do not guess.")
CANONICAL = {role: f"You are the {role}. {duties[0]} Be exact." for role, duties in _DUTIES.items()}
"""One fixed system prompt for each role (all of them are among the training's wordings)."""


def system_prompt(rng: random.Random, split: Split, role: Role, number: int | None = None) -> str:
    """A role's system prompt in one of its wordings; researchers carry their number."""
    opening, duty, manner = pick(rng, _WORDINGS[split][role])
    label = role if number is None else f"{role} {number}"
    return f"{opening.format(r=label)} {duty}{manner}".replace("the researcher ", "researcher ")


def _wordings(split: Split, role: Role) -> tuple[tuple[str, str, str], ...]:
    every = [(o, d, m) for o in _OPENINGS for d in _DUTIES[role] for m in _MANNERS]
    canonical = (_OPENINGS[0], _DUTIES[role][0], _MANNERS[1])
    keys = set(allowed(f"system/{role}", ["|".join(wording) for wording in every], split))
    chosen = tuple(w for w in every if "|".join(w) in keys and w != canonical)
    return (*chosen, canonical) if split == "train" else chosen


_WORDINGS: dict[Split, dict[Role, tuple[tuple[str, str, str], ...]]] = {
    split: {role: _wordings(split, role) for role in _DUTIES} for split in ("train", "heldout")
}


def researcher_prompt(number: int) -> str:
    """The fixed system prompt of a researcher."""
    return f"You are researcher {number}. List the facts of your document. Be exact."


def document_message(number: int, prose: str) -> str:
    """What a researcher is given: its part of the document and the order to report."""
    return f"Document part {number}: {prose}\nWrite report {number}."


def report(number: int, sentences: list[str]) -> str:
    """What a researcher writes."""
    return f"Report {number}: " + " ".join(sentences)


CRITIC_INSTRUCTION = "Do the reports agree?"
JUDGE_INSTRUCTION = "Which candidate is right?"


def places_question(references: list[str]) -> str:
    """The instruction of analyst and writer: where are these?"""
    return f"Where are {_enumerate(references)}?"


def writer_instruction(references: list[str]) -> str:
    """The instruction of the demo's writer, which also reads the critique."""
    return f"{places_question(references)} Say what is disputed."


def _enumerate(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
