"""How a reply's tokens are chosen, and what is told of each: plain data, named as on the wire."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Parameters beside temperature and seed; the defaults change nothing. Their meaning is the engine's, see
    `agentkv_engine.request.SamplingParams`.

    Attributes:
        top_p, top_k, min_p: which candidates may be drawn; top_k 0 is all.
        repetition_penalty, presence_penalty, frequency_penalty: against what has been said.
        logit_bias: token id to a number that is added to its logit.
        min_tokens: the reply does not end before.
        ignore_eos: the model's stop tokens do not end the reply; max_tokens does.
        logprobs: tell the log-probability of every token and of so many of the likeliest, 0..20; None tells nothing.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None

    def body(self) -> dict[str, Any]:
        """The fields of a chat completion request that differ from the defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        body = {name: value for name, value in changed.items() if value != getattr(DEFAULT_SAMPLING, name)}
        if self.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.logprobs}
        if "logit_bias" in body:
            body["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        return body


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token and its natural log-probability, before temperature and penalties.

    Attributes:
        token: its text; a replacement character stands for a part of a character.
        utf8: its bytes.
        top: the likeliest tokens at its place, best first.
    """

    token: str
    utf8: bytes
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()

    def to_object(self) -> dict[str, Any]:
        """OpenAI's object."""
        return {**self._alone(), "top_logprobs": [other._alone() for other in self.top]}

    @classmethod
    def from_object(cls, told: Mapping[str, Any]) -> "TokenLogprob":
        """The counterpart of `to_object`."""
        utf8 = bytes(told["bytes"]) if told.get("bytes") is not None else told["token"].encode()
        top = tuple(cls.from_object(other) for other in told.get("top_logprobs") or ())
        return cls(token=told["token"], utf8=utf8, logprob=told["logprob"], top=top)

    def _alone(self) -> dict[str, Any]:
        return {"token": self.token, "logprob": self.logprob, "bytes": list(self.utf8)}
