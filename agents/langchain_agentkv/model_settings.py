"""What a `ChatAgentKV` is made with, and what LangChain is told of it: traces, profile, saving, caching."""

import os
from typing import Any, Self

from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, SecretStr, SkipValidation, model_validator

from agentkv.api import ChatService, Reuse
from langchain_agentkv.calls import REQUEST_FIELDS, SAMPLING_FIELDS
from langchain_agentkv.replies import PROVIDER


class ModelSettings(BaseChatModel):
    """The fields of `ChatAgentKV`.

    Raises:
        ValueError: not exactly one of `base_url` and `service`.
    """

    base_url: str | None = None
    """URL of a server, with or without `/v1`; else `AGENTKV_BASE_URL`, where there is no `service`."""
    api_key: SecretStr | None = Field(default_factory=secret_from_env("AGENTKV_API_KEY", default=None))
    """Key for the server; else `AGENTKV_API_KEY`."""
    model: str | None = None
    """Name of the served model; None asks the server."""
    timeout: float = 600.0
    """Longest silence of the server in seconds."""
    max_retries: int = Field(default=2, ge=0)
    """How often to ask a server again that is full or can't be reached, before anything of the reply has come."""
    service: SkipValidation[ChatService] | None = Field(default=None, exclude=True, repr=False)
    """A service in this process; it stays the caller's to close."""
    streaming: bool = False
    """Make `invoke` stream to callbacks as well (LangChain's switch)."""

    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    logprobs: bool | None = None
    """Put each token's log-probability into `response_metadata["logprobs"]`."""
    top_logprobs: int | None = None
    """And those of so many of the likeliest tokens, at most 20."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """Variables of the model's chat template, e.g. {"enable_thinking": False}."""
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
        if self.base_url is None and self.service is None:
            self.base_url = os.environ.get("AGENTKV_BASE_URL")
        if (self.base_url is None) == (self.service is None):
            raise ValueError("give either base_url (a server; or set AGENTKV_BASE_URL) or service (in this process)")
        return self

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("base_url", "model", "stop", *REQUEST_FIELDS, *SAMPLING_FIELDS)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop if stop is not None else self.stop, **kwargs)
        params["ls_provider"] = PROVIDER
        if "ls_model_name" not in params and self.service is not None:
            params["ls_model_name"] = self.service.model_id
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
        )
        if (length := getattr(self.service, "context_length", None)) is not None:
            profile["max_input_tokens"] = length - 1
        return profile

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """A model on a URL can be saved; a service in this process can't."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Where a loaded model finds its key."""
        return {"api_key": "AGENTKV_API_KEY"}

    def to_json(self) -> Any:
        """As in `Serializable`; a model on a service in this process says that it can't be saved."""
        return super().to_json() if self.service is None else self.to_json_not_implemented()

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's caches, also for what can't be saved."""
        return str(
            sorted({**self._identifying_params, **kwargs, "stop": stop, "id": id(self.service)}.items(), key=str)
        )
