"""The fields of a request body that say how tokens are chosen: the same in every family of endpoints."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from agentkv.sampling import Sampling

MOST_DIGITS = 10
"""Of a token's number: no vocabulary has more."""

MOST_BIAS = 100
"""OpenAI's limit of a token's bias."""

MOST_CHOICES = 128
"""OpenAI's limit of `n`."""

_BIASES = {
    "type": "object",
    "propertyNames": {"pattern": f"^[0-9]{{1,{MOST_DIGITS}}}$"},
    "additionalProperties": {"type": "number", "minimum": -MOST_BIAS, "maximum": MOST_BIAS},
}

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def biases(value: Any) -> Any:
    """`logit_bias`, refused at its first entry that is wrong: a body may hold millions."""
    for token, bias in value.items() if isinstance(value, dict) else ():
        if not (token.isascii() and token.isdecimal() and len(token) <= MOST_DIGITS):
            raise PydanticCustomError(
                "logit_bias", "{token} is no token: give numbers of tokens", {"token": token[:40]}
            )
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not -MOST_BIAS <= bias <= MOST_BIAS:
            message = "the bias of token {token} is none: give a number of -{most} to {most}"
            raise PydanticCustomError("logit_bias", message, {"token": token, "most": MOST_BIAS})
    return value


class SamplingBody(BaseModel):
    """Null means the default, everywhere."""

    model_config = ConfigDict(strict=True, extra="allow")

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(biases), WithJsonSchema(_BIASES)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None

    def sampling(self, logprobs: int | None) -> Sampling:
        """The parameters that were given."""
        given = {
            "top_p": self.top_p,
            "top_k": max(self.top_k or 0, 0),  # -1, too, is all
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": {int(token): bias for token, bias in (self.logit_bias or {}).items()},
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
            "logprobs": logprobs,
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})

    def seed_of(self, choice: int) -> int | None:
        """Each choice has a seed of its own; the first has the one that was given."""
        return None if self.seed is None else (self.seed + choice + 2**63) % 2**64 - 2**63
