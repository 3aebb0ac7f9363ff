"""Chats on the wire, as far as both ends must agree: what the client sends, and what it makes of the server's answers.

The server checks requests in `agentkv.server.chat.body` and builds replies in `agentkv.server.chat.reply`.
"""

import json
from dataclasses import asdict, fields
from typing import Any

import httpx

from agentkv.api import ChatDelta, ChatRequest, ReuseUsage, Usage
from agentkv.errors import AgentKVError, ContextTooLong, InvalidRequest, RemoteError, ServiceClosed, TemplateRefused
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
        text = choice["delta"].get("content") or ""
        told = (choice.get("logprobs") or {}).get("content") or ()
        logprobs = tuple(TokenLogprob.from_object(token) for token in told)
        return ChatDelta(text=text, logprobs=logprobs) if text or logprobs else None


def chat_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The request as JSON; fields that are not set are left to the server."""
    messages = [
        {"role": message.role, "content": message.content} | ({"name": message.name} if message.name else {})
        for message in request.messages
    ]
    vendor = {"reuse": request.reuse, "selector": request.selector}
    body = {
        "model": model,
        "messages": messages,
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


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`, and under `agentkv` what came from where (read back by `read_usage`)."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "agentkv": {**asdict(usage.reuse), "queue": usage.queue, "ttft": usage.ttft, "duration": usage.duration},
    }


def read_usage(usage: dict[str, Any]) -> Usage:
    """The counterpart of `usage_object`; keys that a newer server adds are left out."""
    vendor = usage.get("agentkv") or {}
    known = {field.name for field in fields(ReuseUsage)}
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
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


def _typed_error(error: dict[str, Any], status: int | None) -> AgentKVError:
    """The error as the service raised it. `status` is None inside a stream."""
    message, code = error["message"], error["code"]
    match code:
        case "context_length_exceeded":
            return ContextTooLong(message)
        case "template_refused":
            return TemplateRefused(message)
        case "service_closed":
            return ServiceClosed(message)
    if status == 400:
        return InvalidRequest(message, param=error["param"], code=code)
    return RemoteError(message, status=status, code=code)
