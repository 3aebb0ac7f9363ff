"""What `agentkv bench engine` measures: each case is the same work for the engine and for transformers."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentkv_evals.bench.model_pair import ModelPair

BATCH = 8
PROMPT = 32
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


def cases(pair: ModelPair, *, num_tokens: int, seed: int) -> Iterator[Case]:
    """All cases, quick ones first.

    Args:
        pair: what runs them.
        num_tokens: of a reply; the most, where lengths are mixed.
        seed: of prompts and lengths.
    """
    lot = random.Random(seed)

    def prompt(length: int) -> list[int]:
        return lot.choices(range(pair.engine.model_config.vocab_size), k=length)

    eight = [prompt(PROMPT) for _ in range(BATCH)]
    one = eight[:1]
    yield Case(
        name="decode, batch 1",
        ours=lambda: pair.ours(one, [num_tokens]),
        theirs=lambda: pair.theirs(one, num_tokens),
        bar=1.0,
        bar_large=0.97,
    )
    yield Case(
        name="decode, batch 8",
        ours=lambda: pair.ours(eight, [num_tokens] * BATCH),
        theirs=lambda: pair.theirs(eight, num_tokens),
        bar=1.2,
        bar_large=0.97,
    )
    yield Case(
        name="batch 8 / one by one",
        ours=lambda: pair.ours(eight, [num_tokens] * BATCH),
        theirs=lambda: [pair.theirs([single], num_tokens) for single in eight],
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
    replies = [lot.randint(min(8, num_tokens), num_tokens) for _ in mixed]
    groups = [slice(first, first + BATCH) for first in range(0, NUM_ARRIVALS, BATCH)]
    yield Case(
        name="32 arrivals / padded batches",
        ours=lambda: pair.ours(mixed, replies),
        theirs=lambda: [pair.theirs(mixed[group], max(replies[group])) for group in groups],
        bar=1.5,
        bar_large=0.97,
    )
