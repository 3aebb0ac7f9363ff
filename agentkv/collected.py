"""A whole reply from the pieces of its stream."""

from dataclasses import dataclass, field, replace

from agentkv.api import ChatDelta, PromptEcho, ToolCall, Usage
from agentkv.sampling import TokenLogprob


@dataclass(slots=True)
class CollectedReply:
    """What a chat has said so far.

    Attributes:
        text, reasoning, tool_calls, token_ids, logprobs: as in the deltas, put together.
        echo: the prompt, where it was asked for.
        finish_reason, usage: those of the last delta.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    echo: PromptEcho | None = None
    finish_reason: str | None = None
    usage: Usage | None = None

    def add(self, delta: ChatDelta) -> None:
        """Take the next piece."""
        self.text += delta.text
        self.reasoning += delta.reasoning
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        for piece in delta.tool_calls:
            if piece.call_id is not None:
                self.tool_calls.append(
                    ToolCall(call_id=piece.call_id, name=piece.name or "", arguments=piece.arguments)
                )
            else:
                call = self.tool_calls[piece.index]
                self.tool_calls[piece.index] = replace(call, arguments=call.arguments + piece.arguments)
        self.echo = delta.echo or self.echo
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage
