"""How the next token is chosen: the parameters that users know, as vLLM and transformers mean them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agentkv_engine.errors import RequestRefused

GREEDY_BELOW = 1e-5
"""Smaller temperatures are greedy: float32 can't divide by them."""

MOST_LOGPROBS = 20
"""Most alternatives whose log-probability is given beside a token's own: OpenAI's limit."""

_FLOATS = {
    "temperature": (0.0, float("inf"), "0 or more, and finite"),
    "min_p": (0.0, 1.0, "0 to 1"),
    "repetition_penalty": (1e-3, 1e3, "0.001 to 1000, 1 changes nothing"),
    "presence_penalty": (-2.0, 2.0, "-2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "-2 to 2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when generation ends.

    Applied in this order: bias, repetition, frequency and presence penalty, tokens that are not allowed, temperature,
    top-k, top-p, min-p; then a token is drawn. Candidates whose logits equal the last one that is kept are kept too.

    Attributes:
        temperature: 0 is greedy: the most likely token, after bias and penalties.
        top_k: most candidates; 0 is all.
        top_p: the most likely candidates that together have this probability (nucleus, arXiv 1904.09751).
        min_p: least probability of a candidate, as a share of the most likely one's (arXiv 2407.01082).
        repetition_penalty: divides positive and multiplies negative logits of tokens that the prompt or the output
            has (arXiv 1909.05858).
        presence_penalty: subtracted from the logits of tokens that the output has.
        frequency_penalty: the same, times how often it has them.
        logit_bias: added to the logits of these tokens.
        max_tokens: most tokens to generate, at least 1.
        min_tokens: stop tokens are not chosen before so many tokens are generated.
        stop_token_ids: tokens that end the output; the stopping token is the output's last id.
        seed: same seed, same tokens, alone or in a batch, in chunks, and after a preemption: one number is drawn a
            token, from the request's own source. Where two candidates lie within rounding of each other, another batch
            may still decide otherwise, since matrix products round by their shape. A signed 64-bit number; None draws
            one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    max_tokens: int = 256
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on the tokens before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def has_filters(self) -> bool:
        """Whether only some candidates may be drawn."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestRefused, with the parameter's name, for a value that can't be used."""
    for name, (least, most, hint) in _FLOATS.items():
        value = getattr(params, name)
        if not least <= value <= most or value == float("inf"):
            raise RequestRefused(f"{name} is {value}: give {hint}", param=name)
    if not 0 < params.top_p <= 1:
        raise RequestRefused(f"top_p is {params.top_p}: give more than 0, and at most 1", param="top_p")
    if params.top_k < 0:
        raise RequestRefused(f"top_k is {params.top_k}: give a number of candidates, or 0 for all", param="top_k")
    if params.max_tokens < 1:
        raise RequestRefused(f"max_tokens is {params.max_tokens}: ask for at least 1", param="max_tokens")
    if not 0 <= params.min_tokens <= params.max_tokens:
        raise RequestRefused(f"min_tokens is {params.min_tokens}: give 0..{params.max_tokens}", param="min_tokens")
    if not -(1 << 63) <= (params.seed or 0) < 1 << 63:
        raise RequestRefused(f"seed is {params.seed}: give one of 64 bits, or none", param="seed")
    _check_bias(params.logit_bias, vocab_size)


def _check_bias(bias: Mapping[int, float], vocab_size: int) -> None:
    for token_id, value in bias.items():
        if not 0 <= token_id < vocab_size:
            raise RequestRefused(f"logit_bias names token {token_id}: give 0..{vocab_size - 1}", param="logit_bias")
        if not -100 <= value <= 100:
            raise RequestRefused(f"logit_bias of token {token_id} is {value}: give -100 to 100", param="logit_bias")
