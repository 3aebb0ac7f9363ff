"""The middleware's plain data: what a chat is asked with and what it answers, in process and over HTTP alike.

Nothing here imports torch. `agentkv.service.Service` is the implementation of `ChatService`; `agentkv.client.Client` is
the same thing behind a URL.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class Reuse(StrEnum):
    """How much kept KV a chat may read: none, only exact prefixes, or screened segments as well."""

    OFF = "off"
    EXACT = "exact"
    SCREENED = "screened"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a chat.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: text; parts of text are joined before they get here.
        name: the agent that wrote it, where the client says so.
    """

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat to continue.

    Attributes:
        messages: the conversation; the reply is written by the agent that the prompt is for.
        max_tokens: most tokens to generate; None means as many as the context length leaves.
        temperature: 0 is greedy.
        stop: strings that end the reply; they are cut from it.
        seed: same seed, same reply.
        reuse: None takes the service's default.
        selector: rule that chooses the repaired rows, e.g. `query_attention(0.2)`; None takes the service's default.
        agent: label of the agent that answers, for statistics only; else the hash of the system prompt.
        cache_salt: narrows the tenant: only requests of the same salt share KV.
        forced_reply: emit this text instead of sampling (replay and evaluation; in process only).
        return_logits: put each token's logits into the deltas (evaluation; in process only).
    """

    messages: tuple[ChatMessage, ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    reuse: Reuse | None = None
    selector: str | None = None
    agent: str | None = None
    cache_salt: str = ""
    forced_reply: str | None = None
    return_logits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseUsage:
    """Where a prompt's tokens came from; prefix + reused + repaired + computed = prompt tokens.

    All are 0 where the chat ended before its first token.

    Attributes:
        prefix: read from the exact (or the agent's own screened) prefix.
        reused: read from segments, not recomputed.
        repaired: of a segment, recomputed because the new context changes them.
        computed: fresh.
        segments: number of segments' spans that were read.
        row_layers: layers run for the prompt, summed over rows (probe and repair included); full prefill has
            prompt_tokens * num_layers.
        full_row_layers: prompt_tokens * num_layers.
        selector: the rule that chose the repaired rows, empty when none was asked.
        agent: label used in statistics.
        misses: reasons why reuse did not happen where it might have, with counts.
    """

    prefix: int = 0
    reused: int = 0
    repaired: int = 0
    computed: int = 0
    segments: int = 0
    row_layers: int = 0
    full_row_layers: int = 0
    selector: str = ""
    agent: str = ""
    misses: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts and times of one chat. Times are seconds from `submit`."""

    prompt_tokens: int
    completion_tokens: int
    reuse: ReuseUsage
    ttft: float | None = None
    duration: float | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed: OpenAI's `prompt_tokens_details.cached_tokens`."""
        return self.reuse.prefix + self.reuse.reused


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDelta:
    """A piece of a reply.

    Attributes:
        text: new text, may be empty.
        token_ids: the tokens behind it.
        logits: torch.Tensor [len(token_ids), vocabulary] where the request asked for it.
        finish_reason: `stop`, `length` or `abort`, set in the last delta.
        usage: set in the last delta.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logits: Any = None
    finish_reason: str | None = None
    usage: Usage | None = None


class ChatStream(Protocol):
    """A running chat. Iterate it from a thread (`for`) or a coroutine (`async for`), not both; it raises its errors."""

    def __iter__(self) -> Iterator[ChatDelta]: ...

    def __aiter__(self) -> AsyncIterator[ChatDelta]: ...

    def cancel(self) -> None:
        """Abort the chat and free what it holds; the stream ends with finish_reason `abort`. Safe at any time."""
        ...


class ChatService(Protocol):
    """Anything that answers chats: the embedded service or a remote server."""

    @property
    def model_id(self) -> str:
        """Name of the model, as clients give it in `model`."""
        ...

    def submit(self, request: ChatRequest, *, tenant: str = "") -> ChatStream:
        """Start a chat. Raises `agentkv.errors.InvalidRequest` (and its kin) at once for what can never run."""
        ...

    def close(self) -> None:
        """Stop; running chats end with `ServiceClosed`."""
        ...
