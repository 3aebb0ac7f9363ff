"""One call of the model: what it says, over what the model was made with, as the middleware's request."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from langchain_core.messages import BaseMessage

from agentkv.api import ChatRequest, Reuse
from agentkv.errors import InvalidRequest
from agentkv.sampling import Sampling
from langchain_agentkv.messages import to_chat_messages
from langchain_agentkv.tools import response_format, tool_use

REQUEST_FIELDS = (
    "agent",
    "cache_salt",
    "max_tokens",
    "reuse",
    "seed",
    "selector",
    "temperature",
    "template_options",
)
"""Fields of `ChatRequest` that a model is made with; each can also be given per call."""

SAMPLING_FIELDS = (*(each.name for each in fields(Sampling)), "top_logprobs")
"""The same of `Sampling`; `logprobs` is a switch here, and `top_logprobs` the number, as in OpenAI's API."""

_ONLY_PER_CALL = ("forced_reply", "parallel_tool_calls", "response_format", "thread", "tool_choice", "tools")
_LANGCHAINS_OWN = frozenset({"stream"})


def chat_request(messages: Sequence[BaseMessage], stop: Sequence[str], given: Mapping[str, Any]) -> ChatRequest:
    """The chat to ask for.

    Args:
        messages: the prompt.
        stop: strings that end the reply.
        given: the model's fields, and over them the call's keywords.

    Raises:
        InvalidRequest: a keyword or message that can't be honoured.
    """
    call = {name: value for name, value in given.items() if name not in _LANGCHAINS_OWN}
    if unknown := call.keys() - {*REQUEST_FIELDS, *SAMPLING_FIELDS, *_ONLY_PER_CALL}:
        name = min(unknown)
        raise InvalidRequest(f"{name}={call[name]!r}: ChatAgentKV knows no such keyword, leave it out", param=name)
    tools = [call.pop(name, None) for name in ("tools", "tool_choice", "parallel_tool_calls")]
    if call.get("reuse") is not None:
        call["reuse"] = _reuse(call["reuse"])
    return ChatRequest(
        messages=to_chat_messages(messages),
        stop=tuple(stop),
        tools=tool_use(*tools),
        response_format=response_format(call.pop("response_format", None)),
        sampling=_sampling({name: call.pop(name, None) for name in SAMPLING_FIELDS}),
        **call,
    )


def _sampling(given: dict[str, Any]) -> Sampling:
    told, likeliest = given.pop("logprobs"), given.pop("top_logprobs")
    if told or likeliest is not None:
        given["logprobs"] = likeliest or 0
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _reuse(value: str) -> Reuse:
    try:
        return Reuse(value)
    except ValueError:
        modes = ", ".join(Reuse)
        raise InvalidRequest(f"reuse is {value!r}: give one of {modes}", param="reuse") from None
