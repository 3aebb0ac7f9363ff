"""A LangChain chat model on an agentkv service: behind a URL or in this process."""

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cached_property
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config

from agentkv.api import ChatRequest, ChatService
from agentkv.client import Client
from agentkv.errors import InvalidRequest
from agentkv.segment_api import SegmentManager
from langchain_agentkv.calls import REQUEST_FIELDS, SAMPLING_FIELDS, chat_request
from langchain_agentkv.errors import model_errors
from langchain_agentkv.messages import to_chat_messages
from langchain_agentkv.model_settings import ModelSettings
from langchain_agentkv.provenance import Provenance
from langchain_agentkv.replies import signed, to_chunk, to_result
from langchain_agentkv.retries import adeltas, deltas
from langchain_agentkv.structured_output import Method, Schema, structured
from langchain_agentkv.tools import ToolLike, openai_tool_choice, openai_tools

RunManager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun


class ChatAgentKV(ModelSettings):
    """Chat with an agentkv server (`base_url`) or a service in this process (`service`).

    The agent's label and the thread come from LangGraph's run metadata by themselves. The label is for statistics, and
    stands as `name` on the reply, so that the next agent's prompt says who wrote what; what is kept of a thread can be
    deleted by it.

        model = ChatAgentKV(base_url="http://127.0.0.1:8000")
        model.invoke("Hello").usage_metadata

    What a request holds (`max_tokens`, `reuse`, ...) can also be given per call (`model.bind(max_tokens=64)`), and so
    can `model`, `tools`, `tool_choice`, `parallel_tool_calls`, `response_format` (in OpenAI's form), and
    `forced_reply`: emit this text instead of sampling (in process only).

    Errors are agentkv's and LangChain's at once (see `langchain_agentkv.errors`).

    Raises:
        ValueError: not exactly one of `base_url` and `service`.
    """

    @cached_property
    def chat_service(self) -> ChatService:
        """What answers."""
        return self.service if self.service is not None else self._client(self.model)

    @property
    def segments(self) -> SegmentManager:
        """What the service keeps of this model's chats: to list, pin and delete."""
        return self._managed("segments")

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the served model's tokenizer."""
        with model_errors():
            return list(self._managed("texts").tokenize(text))

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """How long the prompt of these messages is, by the model's own template.

        Raises:
            InvalidRequest: tools, which can't be counted beforehand.
        """
        with model_errors():
            if tools:
                raise InvalidRequest("tools can't be counted beforehand: leave them out", param="tools")
            return len(self._managed("texts").tokenize(to_chat_messages(messages)))

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call.

        Args:
            tools: anything that LangChain takes for a tool, and OpenAI's form.
            tool_choice: `auto`, `none`, `any` or `required`, True (which is `any`), or the name of a tool.
            strict: hold arguments to the schema also where the model is free to call or not.
            parallel_tool_calls: whether one reply may hold several calls; None means it may.
            kwargs: bound as they are.

        Raises:
            InvalidRequest: a choice that is no tool.
        """
        converted = openai_tools(tools, strict=strict)
        given = {
            "tool_choice": openai_tool_choice(tool_choice, [each["function"]["name"] for each in converted]),
            "parallel_tool_calls": parallel_tool_calls,
        }
        return self.bind(
            tools=converted, **{name: value for name, value in given.items() if value is not None}, **kwargs
        )

    def with_structured_output(
        self,
        schema: Schema,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with replies that are held to a schema, token by token, and parsed.

        Args:
            schema: a Pydantic class, a TypedDict, a JSON schema or an OpenAI function.
            method: `json_schema` replies with JSON, `function_calling` with a call, `json_mode` with any JSON object.
            include_raw: give `raw`, `parsed` and `parsing_error` instead of the parsed reply.
            strict: rewrite the schema so that every field is required and none is added, as OpenAI wants it.

        Raises:
            ValueError: keywords that are unknown.
        """
        if kwargs:
            raise ValueError(f"with_structured_output knows no {', '.join(map(repr, kwargs))}: leave it out")
        return structured(self, schema, method, include_raw=include_raw, strict=strict)

    def generate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`, with the agent's name on the messages."""
        return signed(super().generate(*args, **kwargs))

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`, with the agent's name on the messages."""
        return signed(await super().agenerate(*args, **kwargs))

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

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with model_errors():
            service = self._service_for(kwargs.pop("model", None))
            request = self._request(messages, stop, run_manager, kwargs)
            for delta in deltas(service, request, self._retries):
                yield to_chunk(delta, model=service.model_id, agent=request.agent)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with model_errors():
            service = self._service_for(kwargs.pop("model", None))
            request = self._request(messages, stop, run_manager, kwargs)
            async for delta in adeltas(service, request, self._retries):
                yield to_chunk(delta, model=service.model_id, agent=request.agent)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return to_result(list(self._stream(messages, stop, run_manager, **kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return to_result([chunk async for chunk in self._astream(messages, stop, run_manager, **kwargs)])

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: RunManager | None, call: dict[str, Any]
    ) -> ChatRequest:
        """The chat to ask for; what the call says goes before what the model was made with.

        Raises:
            InvalidRequest: a keyword or message that can't be honoured.
        """
        metadata = ensure_config().get("metadata", {}) | ((run_manager.metadata or {}) if run_manager else {})
        found = Provenance.of(metadata)
        own = {name: getattr(self, name) for name in (*REQUEST_FIELDS, *SAMPLING_FIELDS)}
        own |= {"agent": self.agent or found.agent, "thread": found.thread}
        return chat_request(messages, stop if stop is not None else self.stop or (), own | call)

    def _labelled(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        found = Provenance.of(ensure_config(config).get("metadata", {}))
        known = {"agent": self.agent or found.agent, "thread": found.thread}
        return {name: value for name, value in known.items() if value is not None} | kwargs

    @property
    def _retries(self) -> int:
        """A service in this process that has closed stays closed."""
        return self.max_retries if self.service is None else 0

    def _service_for(self, model: str | None) -> ChatService:
        """What answers a call that names a model.

        Raises:
            InvalidRequest: the service in this process serves another one.
        """
        if model is None or model == self.model:
            return self.chat_service
        if self.service is None:
            return self._client(model)
        if model != self.service.model_id:
            raise InvalidRequest(f"model is {model!r}: this service serves {self.service.model_id!r}", param="model")
        return self.service

    def _managed(self, name: str) -> Any:
        """What a service offers beside chats.

        Raises:
            InvalidRequest: this one does not.
        """
        try:
            return getattr(self.chat_service, name)
        except AttributeError:
            kind = type(self.chat_service).__name__
            raise InvalidRequest(f"a {kind} has no {name}: use a Service, or a server", param="service") from None

    def _client(self, model: str | None) -> Client:
        assert self.base_url is not None
        key = self.api_key.get_secret_value() if self.api_key else None
        return Client(self.base_url, api_key=key, model=model, timeout=self.timeout)
