"""A LangChain chat model on an agentkv service: behind a URL or in this process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig, ensure_config
from pydantic import ConfigDict, Field, SecretStr, SkipValidation, model_validator

from agentkv.api import ChatRequest, ChatService, Reuse
from agentkv.client import Client
from agentkv.errors import InvalidRequest
from langchain_agentkv.messages import to_chat_messages, to_chunk
from langchain_agentkv.provenance import agent_label

# Per-call keywords (`invoke`, `bind`), by the name of the `ChatRequest` field that they set.
_CALL_FIELDS = frozenset(
    {"agent", "cache_salt", "forced_reply", "max_tokens", "reuse", "seed", "selector", "temperature"}
)


class ChatAgentKV(BaseChatModel):
    """Chat with an agentkv server (`base_url`) or a service in this process (`service`).

    The agent's label comes from LangGraph's run metadata by itself, is sent along for statistics, and stands as `name`
    on the reply, so that the next agent's prompt says who wrote what.

        model = ChatAgentKV(base_url="http://127.0.0.1:8000")
        model.invoke("Hello").usage_metadata

    Every field but `base_url`, `api_key`, `model`, `timeout` and `service` can also be given per call
    (`model.bind(max_tokens=64)`), and so can `forced_reply`: emit this text instead of sampling (in process only).

    Raises:
        ValueError: not exactly one of `base_url` and `service`.
    """

    base_url: str | None = None
    """URL of a server, with or without `/v1`."""
    api_key: SecretStr | None = None
    """Key for the server."""
    model: str | None = None
    """Name of the served model; None asks the server."""
    timeout: float = 600.0
    """Longest silence of the server in seconds."""
    service: SkipValidation[ChatService] | None = Field(default=None, exclude=True, repr=False)
    """A service in this process; it stays the caller's to close."""

    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    reuse: Reuse | None = None
    """How much kept KV may be read; None takes the service's default."""
    selector: str | None = None
    """Rule that chooses the repaired rows, e.g. `query_attention(0.2)`."""
    agent: str | None = None
    """Label of the agent; None takes it from LangGraph."""
    cache_salt: str = ""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @model_validator(mode="after")
    def _one_service(self) -> Self:
        if (self.base_url is None) == (self.service is None):
            raise ValueError("give either base_url (a server) or service (in this process)")
        return self

    @cached_property
    def chat_service(self) -> ChatService:
        """What answers."""
        if self.service is not None:
            return self.service
        assert self.base_url is not None
        key = self.api_key.get_secret_value() if self.api_key else None
        return Client(self.base_url, api_key=key, model=self.model, timeout=self.timeout)

    @property
    def _llm_type(self) -> str:
        return "agentkv"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("base_url", "model", "max_tokens", "temperature", "seed", "stop", "reuse", "selector", "cache_salt")
        return {name: getattr(self, name) for name in names}

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, run_manager, kwargs)
        stream = self.chat_service.submit(request)
        try:
            for delta in stream:
                yield to_chunk(delta, model=self.chat_service.model_id, agent=request.agent)
        finally:
            stream.cancel()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = self._request(messages, stop, run_manager, kwargs)
        stream = await asyncio.to_thread(self.chat_service.submit, request)  # it tokenises
        try:
            async for delta in stream:
                yield to_chunk(delta, model=self.chat_service.model_id, agent=request.agent)
        finally:
            stream.cancel()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`, with the agent's name on the messages."""
        return _named(super().generate(*args, **kwargs))

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`, with the agent's name on the messages."""
        return _named(await super().agenerate(*args, **kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """As in `BaseChatModel`; it does not hand `config` to `_stream`, so the label is taken from it here."""
        yield from super().stream(input, config, **self._labelled(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """As in `BaseChatModel`; it does not hand `config` to `_astream`, so the label is taken from it here."""
        async for chunk in super().astream(input, config, **self._labelled(config, kwargs)):
            yield chunk

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - refused whatever they are
        """Not supported by this version.

        Raises:
            InvalidRequest: always; with_structured_output, which binds a tool, ends here too.
        """
        raise InvalidRequest("tools are not supported by this version of agentkv: use an agent without", param="tools")

    def _labelled(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        label = self.agent or agent_label(ensure_config(config).get("metadata", {}))
        return {"agent": label, **kwargs} if label else kwargs

    def _request(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        call: dict[str, Any],
    ) -> ChatRequest:
        """The chat to ask for; what the call says goes before what the model was made with.

        Raises:
            InvalidRequest: a keyword or message that can't be honoured.
        """
        call = {name: value for name, value in call.items() if name != "stream"}  # LangChain's own switch
        if unknown := call.keys() - _CALL_FIELDS:
            name = min(unknown)
            raise InvalidRequest(
                f"{name}={call[name]!r} is not supported by this version of agentkv: leave it out", param=name
            )
        metadata = ensure_config().get("metadata", {}) | ((run_manager.metadata or {}) if run_manager else {})
        fields: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "reuse": self.reuse,
            "selector": self.selector,
            "agent": self.agent or agent_label(metadata),
            "cache_salt": self.cache_salt,
        }
        given = fields | call
        if given["reuse"] is not None:
            given["reuse"] = _reuse(given["reuse"])
        stops = tuple(stop if stop is not None else self.stop or ())
        return ChatRequest(messages=to_chat_messages(messages), stop=stops, **given)


def _reuse(value: str) -> Reuse:
    try:
        return Reuse(value)
    except ValueError:
        modes = ", ".join(Reuse)
        raise InvalidRequest(f"reuse is {value!r}: give one of {modes}", param="reuse") from None


def _named(result: LLMResult) -> LLMResult:
    """Put the agent's name on replies: LangChain loses the name of chunks when it adds them up."""
    for generations in result.generations:
        for generation in generations:
            message = getattr(generation, "message", None)
            if isinstance(message, BaseMessage) and message.name is None:
                message.name = message.response_metadata.get("agent")
    return result
