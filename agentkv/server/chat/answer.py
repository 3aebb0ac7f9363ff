"""What `/v1/chat/completions` answers; built in `agentkv.server.chat.reply`."""

from typing import Literal

from agentkv.server.answers import Answer, TokenLogprobAnswer, UsageAnswer


class CalledFunction(Answer):
    """The function of a call; `arguments` is JSON as text."""

    name: str
    arguments: str


class CallAnswer(Answer):
    """A tool that is called."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class MessageAnswer(Answer):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[CallAnswer] | None = None


class LogprobsAnswer(Answer):
    """Log-probabilities of a reply's tokens."""

    content: list[TokenLogprobAnswer]
    refusal: None


class ChoiceAnswer(Answer):
    """One reply."""

    index: int
    message: MessageAnswer
    logprobs: LogprobsAnswer | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatAnswer(Answer):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceAnswer]
    usage: UsageAnswer
