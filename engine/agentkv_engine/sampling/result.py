"""What sampling gives: a token, and log-probabilities where they were asked for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at one place, as the model gave them: before bias, penalties and temperature.

    Attributes:
        token_id: the token that stands there.
        logprob: its own.
        top: (token id, log-probability) of the most likely ones, best first; as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of one sequence; `logprobs` where the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None
