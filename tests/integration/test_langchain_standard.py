"""LangChain's standard tests for chat models, on the embedded model behind a running server."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from agentkv.embedded import model_directory
from agentkv.service import Service
from agentkv.tokenization import ChatTokenizer
from fakes import running_server
from langchain_agentkv import ChatAgentKV
from langchain_agentkv.tools import ToolLike

MODEL = "agentkv-embedded"

unskilled = pytest.mark.xfail(
    strict=True,
    reason="what the reply must say is beyond the embedded model, which has learned its controlled English only",
)

both_versions = pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)


HELD_TO_A_SCHEMA = {
    "test_bind_runnables_as_tools",
    "test_structured_output",
    "test_structured_output_async",
    "test_structured_output_pydantic_2_v1",
    "test_tool_choice",
    "test_tool_calling_with_no_arguments",
}
"""Tests of a reply's shape, which the server sees to; any words will do."""


class Terse(ChatAgentKV):
    """Calls one tool, and ends a string as soon as it may: the embedded model has never learned when to."""

    def bind_tools(self, tools: Sequence[ToolLike], **options: Any) -> Runnable[LanguageModelInput, AIMessage]:
        return super().bind_tools(tools, **{"parallel_tool_calls": False, **options})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Service.open(model_directory()) as service, running_server(service) as url:
        yield url


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
class TestChatAgentKVUnit(ChatModelUnitTests):
    """Nothing is asked of a server."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAgentKV

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": "http://127.0.0.1:1", "model": MODEL}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        env = {"AGENTKV_BASE_URL": "http://127.0.0.1:1", "AGENTKV_API_KEY": "key"}
        return env, {"model": MODEL}, {"base_url": "http://127.0.0.1:1", "api_key": "key"}

    @pytest.fixture(autouse=True)
    def _known_to_langchain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`allowed_objects="all"` means LangChain's own integrations; others are named to `load` one by one."""
        path = (*ChatAgentKV.get_lc_namespace(), ChatAgentKV.__name__)
        loading = import_module("langchain_core.load.load")
        monkeypatch.setattr(loading, "_get_default_allowed_class_paths", lambda _: {path})


class TestChatAgentKVIntegration(ChatModelIntegrationTests):
    """Everything is asked of the server."""

    @pytest.fixture(autouse=True)
    def _at(self, url: str) -> None:
        self.url = url

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAgentKV

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "max_tokens": 32}

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        """As the standard tests make it; where only a reply's shape counts, a terse one."""
        given = {**self.standard_chat_model_params, **self.chat_model_params, **getattr(request, "param", {})}
        if request.function.__name__ not in HELD_TO_A_SCHEMA:
            return ChatAgentKV(**given)
        (quote,) = ChatTokenizer.from_directory(model_directory()).encode('"')
        return Terse(**{**given, "max_tokens": 64, "logit_bias": {quote: 15.0}})

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return MODEL

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """The second time all but the prompt's last rows are read."""
        model = ChatAgentKV(base_url=self.url, max_tokens=4)
        question = [HumanMessage("Where is Emil? " * 16)]
        model.invoke(question)
        if not stream:
            reply = model.invoke(question)
        else:
            first, *others = model.stream(question)
            reply = sum(others, start=first)
        assert reply.usage_metadata is not None
        assert reply.usage_metadata.get("input_token_details", {}).get("cache_read", 0) > 16
        return reply

    # Calls and formats whose content counts (docs/langgraph.md has the table).

    @unskilled
    @both_versions
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @unskilled
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @unskilled
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @unskilled
    @both_versions
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @unskilled
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
        super().test_unicode_tool_call_integration(model)
