"""Requests that come by lot: Poisson arrivals, lengths as in recorded traffic."""

import math
import random
from dataclasses import dataclass

from agentkv_engine.request import Request, ReuseMode, SamplingParams

LENGTHS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "sharegpt": ((5.398, 0.814), (5.056, 0.694)),
    "azure": ((6.242, 0.526), (5.257, 0.596)),
}
"""Mean and standard deviation of the logarithm of prompt and reply length: fits of ShareGPT, and of Azure's
conversation trace of 2023."""

LONGEST = 4096
"""Most tokens of a prompt, and of a reply: the fits' tails go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request, and when it comes: seconds from the start."""

    at: float
    prompt: int
    reply: int

    def request(self, number: int, vocab_size: int) -> Request:
        """Its request, of random tokens: nobody shares a prefix."""
        lot = random.Random(number)
        return Request(
            request_id=str(number),
            token_ids=tuple(lot.choices(range(vocab_size), k=self.prompt)),
            sampling=SamplingParams(max_tokens=self.reply),
            mode=ReuseMode.OFF,
        )


def arrivals(lengths: str, *, rate: float, seconds: float, scale: float, seed: int) -> tuple[Arrival, ...]:
    """Requests of so many seconds, at `rate` a second. The same seed gives the same lengths at every rate.

    Args:
        lengths: one of `LENGTHS`.
        scale: lengths are multiplied by it.
    """
    when, what = random.Random(f"when {seed}"), random.Random(f"what {seed}")
    (prompt, reply), coming, now = LENGTHS[lengths], [], 0.0
    while (now := now + when.expovariate(rate)) < seconds:
        sizes = [math.ceil(scale * what.lognormvariate(*fit)) for fit in (prompt, reply)]
        coming.append(Arrival(at=now, prompt=min(sizes[0], LONGEST), reply=min(sizes[1], LONGEST)))
    return tuple(coming)
