"""The body of `/v1/completions`: its shape, and the `ChatRequest`s it stands for."""

from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from agentkv.api import ChatRequest
from agentkv.server.bounded import Stops
from agentkv.server.chat.body import Label, StopStrings, VendorBody
from agentkv.server.errors import ApiError
from agentkv.server.fields import COMPLETION_FIELDS, STREAM_OPTIONS, StreamOptions
from agentkv.server.sampling_body import SamplingBody

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
MOST_PROMPTS = 128

Prompt = str | tuple[int, ...]
_Text = Annotated[str, Field(min_length=1)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=MOST_PROMPTS)]
_Lists = Annotated[list[_TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]


def prompts(value: Any) -> Any:
    """`prompt` as a list of prompts: one text, texts, the tokens of one prompt, or of several."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "give a text, a list of texts, token ids, or a list of lists of token ids")
    return [value] if all(isinstance(item, int) for item in value) else value


def one_prompt(value: Any) -> Any:
    """A text, or token ids as a tuple."""
    if isinstance(value, str) and value:
        return value
    ids = isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if not ids or not value:
        raise PydanticCustomError("prompt", "a prompt is a text or a list of token ids, and not empty")
    return tuple(value)


class CompletionBody(SamplingBody):
    """A completion request. Fields beyond these are passed or refused by `COMPLETION_FIELDS`."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=COMPLETION_FIELDS.describe)

    model: str
    prompt: Annotated[
        list[Annotated[Prompt, BeforeValidator(one_prompt)]],
        Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True),
        BeforeValidator(prompts, json_schema_input_type=_Text | _TokenIds | _Texts | _Lists),
    ]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stop: Annotated[Stops, StopStrings, Field(default=[])]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    best_of: int | None = None
    suffix: str | None = None
    cache_salt: Label | None = None
    agent_hint: Label | None = None
    agentkv: VendorBody | None = None

    @property
    def num_choices(self) -> int:
        """Replies to each prompt."""
        return self.n or 1

    @property
    def is_score_only(self) -> bool:
        """Nothing is to be generated: only the prompt is looked at."""
        return self.max_tokens == 0

    def to_requests(self, default_temperature: float) -> list[ChatRequest]:
        """A chat for each choice of each prompt.

        Raises:
            ApiError: 400, a field that can't be honoured.
        """
        self._check()
        vendor = self.agentkv or VendorBody()
        most = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        common = ChatRequest(
            echo=bool(self.echo),
            prompt_logprobs=self.logprobs if self.echo else None,
            max_tokens=max(most, 1),
            temperature=default_temperature if self.temperature is None else self.temperature,
            stop=tuple(self.stop),
            sampling=self.sampling(self.logprobs),
            reuse=vendor.reuse,
            selector=vendor.selector,
            agent=self.agent_hint or None,
            cache_salt=self.cache_salt or "",
        )
        choices = range(self.num_choices)
        return [replace(common, prompt=prompt, seed=self.seed_of(k)) for prompt in self.prompt for k in choices]

    def _check(self) -> None:
        COMPLETION_FIELDS.check(self.model_extra or {})
        STREAM_OPTIONS.check(self.stream_options or {}, "stream_options.")
        if self.best_of not in (None, 1, self.num_choices):
            message = f"best_of is {self.best_of}: replies are not ranked here; ask for n of them and choose"
            raise ApiError(400, message, param="best_of", code="unsupported_parameter")
        if self.suffix:
            message = "suffix: the model writes from left to right and can't fill in; put the suffix into the prompt"
            raise ApiError(400, message, param="suffix", code="unsupported_parameter")
