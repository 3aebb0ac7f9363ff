"""OpenAI's text completion objects: the whole reply, and the chunks of a stream."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentkv.api import ChatDelta, PromptEcho, Usage
from agentkv.collected import CollectedReply
from agentkv.sampling import TokenLogprob
from agentkv.wire import usage_object


class CompletionReply:
    """One request's answer with a text for each choice.

    Args:
        model: as it was asked for.
        num_choices: how many texts, of all prompts together.
        with_logprobs: tell log-probabilities.
        with_output: False where nothing was to be generated; the one token that the engine gives is left out.
    """

    def __init__(self, model: str, num_choices: int, *, with_logprobs: bool, with_output: bool) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._collected = [CollectedReply() for _ in range(num_choices)]
        self._lengths = [0] * num_choices  # characters told of each choice so far
        self._with_logprobs = with_logprobs
        self._with_output = with_output

    def add(self, index: int, delta: ChatDelta) -> None:
        """Take a piece of the whole reply."""
        self._collected[index].add(delta)

    def completion(self, usage: Usage) -> dict[str, Any]:
        """The whole reply as one object."""
        choices: list[dict[str, Any]] = []
        for index, reply in enumerate(self._collected):
            whole = ChatDelta(text=reply.text, logprobs=tuple(reply.logprobs), echo=reply.echo)
            choices.append(self._choice(index, whole, self._reason(reply.finish_reason)))
        return {**self._head, "choices": choices, "usage": self._usage(usage)}

    def chunks(self, index: int, delta: ChatDelta) -> Iterator[dict[str, Any]]:
        """The chunks that a piece of a reply brings."""
        if delta.text or delta.logprobs or delta.echo:
            yield {**self._head, "choices": [self._choice(index, delta, None)], "usage": None}
        if delta.finish_reason is not None:
            last = self._choice(index, ChatDelta(), self._reason(delta.finish_reason))
            yield {**self._head, "choices": [last], "usage": None}

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk: no choices, the usage."""
        return {**self._head, "choices": [], "usage": self._usage(usage)}

    def _reason(self, finish_reason: str | None) -> str | None:
        return finish_reason if self._with_output else "length"

    def _usage(self, usage: Usage) -> dict[str, Any]:
        told = usage_object(usage)
        if not self._with_output:
            told |= {"completion_tokens": 0, "total_tokens": told["prompt_tokens"]}
        return told

    def _choice(self, index: int, delta: ChatDelta, finish_reason: str | None) -> dict[str, Any]:
        echo = delta.echo or PromptEcho(text="")
        text = echo.text + (delta.text if self._with_output else "")
        told: Sequence[TokenLogprob | None] = (*echo.logprobs, *(delta.logprobs if self._with_output else ()))
        tokens = (*echo.tokens, *(token.token for token in delta.logprobs if self._with_output))
        logprobs = _logprobs(tokens, told, self._lengths[index]) if self._with_logprobs and tokens else None
        self._lengths[index] += len(text)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(tokens: Sequence[str], told: Sequence[TokenLogprob | None], start: int) -> dict[str, Any]:
    """OpenAI's four lists; the first token of a prompt has no probability."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(start)
        start += len(token)
    return {
        "tokens": list(tokens),
        "token_logprobs": [token and token.logprob for token in told],
        "top_logprobs": [token and _top(token) for token in told],
        "text_offset": offsets,
    }


def _top(token: TokenLogprob) -> Mapping[str, float]:
    """By text, the likeliest and the token itself; of those that read the same the likeliest counts."""
    candidates = sorted((*token.top, token), key=lambda other: other.logprob)
    return {other.token: other.logprob for other in candidates}
