"""What `/v1/responses` answers; built in `agentkv.server.responses.reply`."""

from typing import Any, Literal

from agentkv.server.answers import Answer, CachedTokens, ReasoningTokens, ReuseAnswer


class OutputText(Answer):
    """A part of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningText(Answer):
    """A part of the thoughts."""

    type: Literal["reasoning_text"]
    text: str


class MessageOutput(Answer):
    """What the model says."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed"]
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningOutput(Answer):
    """What it thought."""

    id: str
    type: Literal["reasoning"]
    status: Literal["in_progress", "completed"]
    summary: list[Any]
    content: list[ReasoningText]


class CallOutput(Answer):
    """A tool that it calls."""

    id: str
    type: Literal["function_call"]
    status: Literal["in_progress", "completed"]
    call_id: str
    name: str
    arguments: str


class ResponseUsage(Answer):
    """This API's `usage`, and what was reused."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int
    agentkv: ReuseAnswer


class IncompleteDetails(Answer):
    """Why it ends early."""

    reason: Literal["max_output_tokens"]


class ResponseAnswer(Answer):
    """A response, with fields of the request that it repeats."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete"]
    output: list[MessageOutput | ReasoningOutput | CallOutput]
    error: None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, None]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"]


class DeletedResponse(Answer):
    """One that is no longer held."""

    id: str
    object: Literal["response"]
    deleted: bool
