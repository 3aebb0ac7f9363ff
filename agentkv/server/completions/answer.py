"""What `/v1/completions` answers; built in `agentkv.server.completions.reply`."""

from typing import Literal

from agentkv.server.answers import Answer, UsageAnswer


class TextLogprobs(Answer):
    """Four lists, an entry a token; the first token of a prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Answer):
    """One text."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(Answer):
    """A text completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageAnswer
