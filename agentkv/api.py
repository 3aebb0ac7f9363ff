"""The middleware's plain data: what a chat is asked with and what it answers, in process and over HTTP alike.

Nothing here imports torch. `agentkv.service.Service` is the implementation of `ChatService`; `agentkv.client.Client` is
the same thing behind a URL.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from agentkv.sampling import DEFAULT_SAMPLING, Sampling, TokenLogprob


class Reuse(StrEnum):
    """How much kept KV a chat may read: none, only exact prefixes, or screened segments as well."""

    OFF = "off"
    EXACT = "exact"
    SCREENED = "screened"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that an assistant calls.

    Attributes:
        call_id: pairs the call with the tool message that answers it.
        name: the tool.
        arguments: a JSON object as text.
    """

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a chat.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: text; parts of text are joined before they get here.
        name: the agent that wrote it, where the client says so.
        tool_calls: what an assistant called.
        tool_call_id: the call that a tool message answers.
        reasoning: what a reasoning model thought before its content; most templates leave it out.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that a model may call.

    Attributes:
        name: letters, digits, underscores and dashes.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object; None where it takes none.
        strict: hold the arguments to the schema also where the model is free to call or not.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def arguments_schema(self) -> Mapping[str, Any]:
        """`parameters`, or the schema of no arguments."""
        return {"type": "object", "properties": {}} if self.parameters is None else self.parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools of a chat, and whether its reply has to call any.

    Attributes:
        tools: all of them, as the model is told.
        choice: `none` calls none, `auto` leaves it to the model, `required` calls at least one.
        only: names of those that may be called; none named means all.
        parallel: several calls in one reply.
    """

    tools: tuple[Tool, ...]
    choice: Literal["none", "auto", "required"] = "auto"
    only: tuple[str, ...] = ()
    parallel: bool = True

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        return tuple(tool for tool in self.tools if not self.only or tool.name in self.only)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """A reply that is JSON of a schema, held to it token by token.

    Attributes:
        schema: JSON schema.
        name: what the client calls it, for messages.
    """

    schema: Mapping[str, Any]
    name: str = "response_format"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat to continue.

    Attributes:
        messages: the conversation; the reply is written by the agent that the prompt is for.
        prompt: a text or its tokens to continue as they are, without a chat template, instead of `messages`.
        echo: give the prompt back, in the first delta.
        prompt_logprobs: with it, the log-probability of each of its tokens, and of so many of the likeliest; such a
            chat reads no kept KV.
        tools: tools that the reply may or must call; they are called in the text format of the model's template.
        response_format: hold the reply to a JSON schema.
        template_options: variables of the model's chat template, e.g. {"enable_thinking": False}.
        max_tokens: most tokens to generate; None means as many as the context length leaves.
        temperature: 0 is greedy.
        sampling: how else tokens are chosen, and whether their log-probabilities are told.
        stop: strings that end the reply; they are cut from it.
        seed: same seed, same reply.
        reuse: None takes the service's default.
        selector: rule that chooses the repaired rows, e.g. `query_attention(0.2)`; None takes the service's default.
        agent: label of the agent that answers, for statistics only; else the hash of the system prompt.
        thread: the conversation this belongs to; what is kept of it can be deleted by it.
        cache_salt: narrows the tenant: only requests of the same salt share KV.
        forced_reply: emit this text instead of sampling (replay and evaluation; in process only).
        return_logits: put each token's logits into the deltas (evaluation; in process only).
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    echo: bool = False
    prompt_logprobs: int | None = None
    tools: ToolUse | None = None
    response_format: ResponseFormat | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    temperature: float = 0.0
    sampling: Sampling = DEFAULT_SAMPLING
    stop: tuple[str, ...] = ()
    seed: int | None = None
    reuse: Reuse | None = None
    selector: str | None = None
    agent: str | None = None
    thread: str | None = None
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
        restored: tokens of these that were brought back from host memory for this chat.
        row_layers: layers run for the prompt, summed over rows (probe and repair included); full prefill has
            prompt_tokens * num_layers.
        full_row_layers: prompt_tokens * num_layers.
        selector: the rule that chose the repaired rows, empty when none was asked.
        agent: label used in statistics.
        authors: tokens read from segments (repaired ones included), by the label of the agent that wrote or first read
            them.
        misses: reasons why reuse did not happen where it might have, with counts.
        estimated_kl: estimate of the divergence of the next token from that of full prefill; None where no rule gave
            one.
    """

    prefix: int = 0
    reused: int = 0
    repaired: int = 0
    computed: int = 0
    segments: int = 0
    restored: int = 0
    row_layers: int = 0
    full_row_layers: int = 0
    selector: str = ""
    agent: str = ""
    authors: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    estimated_kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts and times of one chat. Times are seconds from `submit`; `queue` until the engine took it up.

    `reasoning_tokens` are those of `completion_tokens` that the model thought with.
    """

    prompt_tokens: int
    completion_tokens: int
    reuse: ReuseUsage
    reasoning_tokens: int = 0
    queue: float | None = None
    ttft: float | None = None
    duration: float | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed: OpenAI's `prompt_tokens_details.cached_tokens`."""
        return self.reuse.prefix + self.reuse.reused

    def with_completions(self, usages: "Iterable[Usage]") -> "Usage":
        """This usage with the reply tokens of several chats over the same prompt."""
        counts = [(usage.completion_tokens, usage.reasoning_tokens) for usage in usages]
        completion, reasoning = (sum(column) for column in zip(*counts, strict=True))
        return replace(self, completion_tokens=completion, reasoning_tokens=reasoning)


def usage_together(usages: Iterable[Usage]) -> Usage:
    """Usage of chats over different prompts; times are those of the first."""
    first, *others = usages
    for other in others:
        reuse = asdict(first.reuse)
        reuse |= {name: reuse[name] + value for name, value in asdict(other.reuse).items() if type(value) is int}
        first = replace(
            first,
            prompt_tokens=first.prompt_tokens + other.prompt_tokens,
            completion_tokens=first.completion_tokens + other.completion_tokens,
            reasoning_tokens=first.reasoning_tokens + other.reasoning_tokens,
            reuse=ReuseUsage(**reuse),
        )
    return first


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call.

    Attributes:
        index: which of the reply's calls.
        call_id, name: set in the call's first piece.
        arguments: new text of the arguments, may be empty.
    """

    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""

    @staticmethod
    def joined(pieces: "Iterable[ToolCallDelta]") -> "list[ToolCallDelta]":
        """One piece for each call: some clients lose the name where one chunk holds two of the same call."""
        calls: dict[int, ToolCallDelta] = {}
        for piece in pieces:
            first = calls.get(piece.index)
            calls[piece.index] = replace(first, arguments=first.arguments + piece.arguments) if first else piece
        return list(calls.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEcho:
    """A prompt, given back.

    Attributes:
        text: all of it, special tokens spelt out.
        tokens: text of each token.
        logprobs: one for each token where the request asked for them; None for the first.
    """

    text: str
    tokens: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDelta:
    """A piece of a reply.

    Attributes:
        text: new text, may be empty.
        reasoning: new text of what the model thinks before it answers.
        tool_calls: new pieces of tool calls.
        echo: the prompt, in the first delta where the request asked for it.
        token_ids: the tokens behind it.
        logprobs: one for each token where the request asked for them.
        logits: torch.Tensor [len(token_ids), vocabulary] where the request asked for it.
        finish_reason: `stop`, `tool_calls`, `length` or `abort`, set in the last delta.
        stopped_by: the stop string that ended the reply, if one did.
        usage: set in the last delta.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    echo: PromptEcho | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    logits: Any = None
    finish_reason: str | None = None
    stopped_by: str | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """A text as a vector of length 1, float32 [hidden size], and the tokens that it took."""

    vector: "NDArray[np.float32]"
    num_tokens: int
