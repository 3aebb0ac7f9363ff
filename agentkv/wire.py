"""Chats on the wire, as far as both ends must agree: what the client sends, and what it makes of the server's answers.

The server checks requests in `agentkv.server.chat.body` and builds replies in `agentkv.server.chat.reply`.
"""

import json
from dataclasses import asdict, fields
from typing import Any

import httpx

from agentkv.api import (
    ChatDelta,
    ChatMessage,
    ChatRequest,
    ResponseFormat,
    ReuseUsage,
    ToolCall,
    ToolCallDelta,
    ToolUse,
    Usage,
)
from agentkv.errors import (
    AgentKVError,
    ContextTooLong,
    EngineRestarting,
    InvalidRequest,
    RemoteError,
    ServiceClosed,
    TemplateRefused,
)
from agentkv.sampling import TokenLogprob


class EventReader:
    """Server-sent events of one reply, line by line, as deltas. The last delta carries finish reason and usage."""

    def __init__(self) -> None:
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self.complete = False

    def read(self, line: str) -> ChatDelta | None:
        """The delta that a line brings, if any.

        Raises:
            AgentKVError: the event is an error, or none that an agentkv server sends.
        """
        if not line.startswith("data:"):
            return None
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.complete = self._finish_reason is not None
            return ChatDelta(text="", finish_reason=self._finish_reason, usage=self._usage) if self.complete else None
        try:
            return self._chunk(json.loads(data))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            message = f"the server sent an event that is no chat chunk: {data[:200]!r}; is base_url an agentkv server?"
            raise RemoteError(message, code="bad_event") from error

    def _chunk(self, chunk: dict[str, Any]) -> ChatDelta | None:
        if "error" in chunk:
            raise _typed_error(chunk["error"], None)
        if chunk.get("usage") is not None:
            self._usage = read_usage(chunk["usage"])
        if not chunk["choices"]:
            return None
        choice = chunk["choices"][0]
        self._finish_reason = choice["finish_reason"] or self._finish_reason
        told = (choice.get("logprobs") or {}).get("content") or ()
        delta = choice["delta"]
        read = ChatDelta(
            text=delta.get("content") or "",
            reasoning=delta.get("reasoning_content") or "",
            tool_calls=tuple(_read_call(call) for call in delta.get("tool_calls") or ()),
            logprobs=tuple(TokenLogprob.from_object(token) for token in told),
        )
        return None if read == ChatDelta() else read


def chat_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The request as JSON; fields that are not set are left to the server."""
    if request.prompt is not None:
        raise InvalidRequest(
            "a text without messages does not travel: use the server's /v1/completions", param="prompt"
        )
    vendor = {"reuse": request.reuse, "selector": request.selector}
    body = {
        "model": model,
        "messages": [_message_object(message) for message in request.messages],
        **(_tools_object(request.tools) if request.tools else {}),
        "response_format": _format_object(request.response_format) if request.response_format else None,
        "chat_template_kwargs": dict(request.template_options) or None,
        "stream": True,
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "seed": request.seed,
        **request.sampling.body(),
        "agent_hint": request.agent,
        "session_id": request.thread,
        "cache_salt": request.cache_salt or None,
        "agentkv": {name: value for name, value in vendor.items() if value is not None} or None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _message_object(message: ChatMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "role": message.role,
        "content": message.content,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning or None,
        "tool_calls": [call_object(call) for call in message.tool_calls] or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def call_object(call: ToolCall) -> dict[str, Any]:
    """OpenAI's tool call."""
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tools_object(use: ToolUse) -> dict[str, Any]:
    named = [{"type": "function", "function": {"name": name}} for name in use.only]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": use.choice, "tools": named}}
    definitions = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            },
        }
        for tool in use.tools
    ]
    choice = allowed if named and use.choice != "none" else use.choice
    return {"tools": definitions, "tool_choice": choice, "parallel_tool_calls": use.parallel}


def _format_object(wanted: ResponseFormat) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema, "strict": True}}


def _read_call(call: dict[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(
        index=call["index"],
        call_id=call.get("id"),
        name=function.get("name"),
        arguments=function.get("arguments") or "",
    )


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`, and under `agentkv` what came from where (read back by `read_usage`)."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "agentkv": vendor_object(usage),
    }


def vendor_object(usage: Usage) -> dict[str, Any]:
    """What came from where, under `agentkv` in the usage of every endpoint."""
    return {**asdict(usage.reuse), "queue": usage.queue, "ttft": usage.ttft, "duration": usage.duration}


def read_usage(usage: dict[str, Any]) -> Usage:
    """The counterpart of `usage_object`; keys that a newer server adds are left out."""
    vendor = usage.get("agentkv") or {}
    known = {field.name for field in fields(ReuseUsage)}
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
        reuse=ReuseUsage(**{name: value for name, value in vendor.items() if name in known}),
        queue=vendor.get("queue"),
        ttft=vendor.get("ttft"),
        duration=vendor.get("duration"),
    )


def served_model(response: httpx.Response) -> str:
    """The first model that an answer of `/v1/models` lists."""
    if response.is_error:
        raise refused(response)
    try:
        return response.json()["data"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        message = f"{response.url} lists no model: {response.text[:200]!r}; is base_url an agentkv server?"
        raise RemoteError(message, status=response.status_code, code="bad_envelope") from error


def refused(response: httpx.Response) -> AgentKVError:
    """The typed error of an answer that is no success."""
    try:
        return _typed_error(response.json()["error"], response.status_code)
    except (ValueError, KeyError, TypeError):
        message = (
            f"{response.url} answered {response.status_code} without an error envelope: {response.text[:200]!r}; is "
            "base_url an agentkv server?"
        )
        return RemoteError(message, status=response.status_code, code="bad_envelope")


_REFUSED = ("segment_not_found", "pin_budget_exceeded")
"""Codes of an `InvalidRequest` whose HTTP status is not 400."""


def _typed_error(error: dict[str, Any], status: int | None) -> AgentKVError:
    """The error as the service raised it. `status` is None inside a stream."""
    message, code = error["message"], error["code"]
    match code:
        case "context_length_exceeded":
            return ContextTooLong(message)
        case "template_refused":
            return TemplateRefused(message)
        case "engine_restarting":
            return EngineRestarting(message)
        case "service_closed":
            return ServiceClosed(message)
    if status == 400 or code in _REFUSED:
        return InvalidRequest(message, param=error["param"], code=code)
    return RemoteError(message, status=status, code=code)
