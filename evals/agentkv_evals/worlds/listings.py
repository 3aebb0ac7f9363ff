"""Lists and quotations in reports, and other agents' references to them: families `ordinal` and `quote`."""

from __future__ import annotations

import random

from agentkv_evals.worlds.cast import pick
from agentkv_evals.worlds.grammar import Sentence, ask
from agentkv_evals.worlds.thread import Draft, Probe
from agentkv_evals.worlds.words import ORDINALS, QUOTE_WORDS

_ITEM = ("What is the {o} item of report {n}?", "Which thing is the {o} item of report {n}?")
_TAKE = ("What does {x} take?", "Tell us what {x} takes.")
_SAY = ("What did {x} say?", "Tell us what {x} said.")


def _plain(text: str) -> Sentence:
    return Sentence(text, text)


def add_list(draft: Draft, hops: int) -> None:
    """One report lists things; later ones take the n-th item, or "the same as" somebody, `hops` turns in a chain."""
    rng, cast = draft.rng, draft.cast
    home = int(rng.random() * (len(draft.turns) - hops))
    things = [cast.thing() for _ in range(3 + int(rng.random() * 3))]
    index = int(rng.random() * len(things))
    draft.insert(home, _plain("The list: " + ", ".join(thing.reference for thing in things) + "."))
    draft.probes.append(
        Probe(
            family="ordinal",
            depth=0,
            question=ask(rng, draft.split, _ITEM, o=ORDINALS[index], n=str(home + 1)),
            answer=f"Answer: The {ORDINALS[index]} item of report {home + 1} is{{ {things[index].reference}}}.",
        )
    )
    taker, turn = None, home
    for hop in range(1, hops + 1):
        turn += 1 + int(rng.random() * (len(draft.turns) - turn - (hops - hop) - 1))
        person = cast.person()
        what = f"the {ORDINALS[index]} item of report {home + 1}" if taker is None else f"the same as {taker.word}"
        draft.insert(turn, _plain(f"{person.word} takes {what}."))
        taker = person
        draft.probes.append(
            Probe(
                family="ordinal",
                depth=hop,
                question=ask(rng, draft.split, _TAKE, x=person.word),
                answer=f"Answer: {person.word} takes{{ {things[index].reference}}}.",
            )
        )


def _saying(rng: random.Random) -> str:
    return "the " + " ".join(pick(rng, words) for words in QUOTE_WORDS)


def add_quote(draft: Draft, hops: int) -> None:
    """Somebody said something; in later reports others say the same, `hops` turns in a chain."""
    rng, turn, speaker = draft.rng, int(draft.rng.random() * (len(draft.turns) - hops)), None
    saying = _saying(rng)
    for hop in range(hops + 1):
        if hop:
            turn += 1 + int(rng.random() * (len(draft.turns) - turn - (hops - hop) - 1))
        person = draft.cast.person()
        what = f"said: {saying}" if speaker is None else f"said the same as {speaker.word}"
        draft.insert(turn, _plain(f"{person.word} {what}."))
        speaker = person
        draft.probes.append(
            Probe(
                family="quote",
                depth=hop,
                question=ask(rng, draft.split, _SAY, x=person.word),
                answer=f"Answer: {person.word} said:{{ {saying}}}.",
            )
        )
