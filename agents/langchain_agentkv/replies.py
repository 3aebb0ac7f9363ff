"""The middleware's deltas as LangChain's chunks."""

import json
from dataclasses import asdict
from typing import Any

from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks

from agentkv.api import ChatDelta, ToolCallDelta, Usage

PROVIDER = "agentkv"


def to_chunk(delta: ChatDelta, *, model: str, agent: str | None) -> ChatGenerationChunk:
    """A piece of a reply; the last one carries usage and metadata."""
    message = AIMessageChunk(
        content=delta.text,
        name=agent,
        tool_call_chunks=[_call_chunk(call) for call in ToolCallDelta.joined(delta.tool_calls)],
        additional_kwargs={"reasoning_content": delta.reasoning} if delta.reasoning else {},
    )
    if delta.logprobs:
        message.response_metadata = {"logprobs": {"content": [token.to_object() for token in delta.logprobs]}}
    if delta.finish_reason is None:
        return ChatGenerationChunk(message=message)
    message.chunk_position = "last"
    message.response_metadata |= {
        "finish_reason": delta.finish_reason,
        "model_name": model,
        "model_provider": PROVIDER,
    }
    if agent:
        message.response_metadata["agent"] = agent
    if delta.usage is not None:
        message.response_metadata["agentkv"] = _reuse_metadata(delta.usage)
        message.usage_metadata = _usage_metadata(delta.usage)
    return ChatGenerationChunk(message=message, generation_info={"finish_reason": delta.finish_reason})


def to_result(chunks: list[ChatGenerationChunk]) -> ChatResult:
    """A whole reply. A call that was cut off (by `max_tokens`) is an invalid one: pieces are read leniently while they
    come, and half of the arguments would pass for all of them."""
    result = generate_from_stream(iter(chunks))
    message = result.generations[0].message
    total = merge_chat_generation_chunks(chunks)
    if isinstance(message, AIMessage) and total is not None and isinstance(total.message, AIMessageChunk):
        calls = [(call, _arguments(call["args"])) for call in total.message.tool_call_chunks]
        message.tool_calls = [
            tool_call(name=call["name"] or "", args=arguments, id=call["id"])
            for call, arguments in calls
            if arguments is not None
        ]
        message.invalid_tool_calls = [
            invalid_tool_call(name=call["name"], args=call["args"], id=call["id"], error="no whole JSON object")
            for call, arguments in calls
            if arguments is None
        ]
    return result


def _arguments(text: str | None) -> dict[str, Any] | None:
    """The arguments of a call, None where they are no whole JSON object."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def signed(result: LLMResult) -> LLMResult:
    """Put the agent's name on replies: LangChain loses the name of chunks when it adds them up."""
    for generations in result.generations:
        for generation in generations:
            message = getattr(generation, "message", None)
            if isinstance(message, BaseMessage) and message.name is None:
                message.name = message.response_metadata.get("agent")
    return result


def _call_chunk(call: ToolCallDelta) -> ToolCallChunk:
    return tool_call_chunk(name=call.name, args=call.arguments, id=call.call_id, index=call.index)


def _usage_metadata(usage: Usage) -> UsageMetadata:
    metadata = UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )
    if usage.reasoning_tokens:
        metadata["output_token_details"] = OutputTokenDetails(reasoning=usage.reasoning_tokens)
    return metadata


def _reuse_metadata(usage: Usage) -> dict[str, Any]:
    return {**asdict(usage.reuse), "ttft": usage.ttft, "duration": usage.duration}
