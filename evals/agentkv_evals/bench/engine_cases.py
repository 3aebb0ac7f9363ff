"""What `agentkv bench engine` measures: each case is the same work for the engine and for transformers."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentkv_evals.bench.model_pair import ModelPair

BATCH = 8
PROMPT, REPLY = 32, 64
NUM_ARRIVALS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        bar, bar_large: how many times as fast the engine should be, for models of up to 25M parameters and for larger.
    """

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    bar: float
    bar_large: float


def cases(pair: ModelPair, *, seed: int) -> Iterator[Case]:
    """All cases, quick ones first."""
    lot = random.Random(seed)

    def prompt(length: int) -> list[int]:
        return lot.choices(range(pair.engine.model_config.vocab_size), k=length)

    eight = [prompt(PROMPT) for _ in range(BATCH)]
    one = eight[:1]
    yield Case(
        name="decode, batch 1",
        ours=lambda: pair.ours(one, [REPLY]),
        theirs=lambda: pair.theirs(one, REPLY),
        bar=1.0,
        bar_large=0.97,
    )
    yield Case(
        name="decode, batch 8",
        ours=lambda: pair.ours(eight, [REPLY] * BATCH),
        theirs=lambda: pair.theirs(eight, REPLY),
        bar=1.2,
        bar_large=0.97,
    )
    yield Case(
        name="batch 8 / one by one",
        ours=lambda: pair.ours(eight, [REPLY] * BATCH),
        theirs=lambda: [pair.theirs([single], REPLY) for single in eight],
        bar=3.0,
        bar_large=0.97,
    )
    for length in (512, 4096):
        text = [prompt(length)]
        yield Case(
            name=f"prefill, {length} tokens",
            ours=lambda text=text: pair.ours(text, [1]),
            theirs=lambda text=text: pair.theirs(text, 1),
            bar=1.0,
            bar_large=0.97,
        )
    mixed = [prompt(lot.randint(16, 256)) for _ in range(NUM_ARRIVALS)]
    replies = [lot.randint(8, REPLY) for _ in mixed]
    groups = [slice(first, first + BATCH) for first in range(0, NUM_ARRIVALS, BATCH)]
    yield Case(
        name="32 arrivals / padded batches",
        ours=lambda: pair.ours(mixed, replies),
        theirs=lambda: [pair.theirs(mixed[group], max(replies[group])) for group in groups],
        bar=1.5,
        bar_large=0.97,
    )
