"""What LangChain expects of any chat model: names, keys, traces, profiles, saving and loading, caching."""

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumpd, load

from agentkv.errors import InvalidRequest, RemoteError
from fakes import FakeService, running_server
from langchain_agentkv import ChatAgentKV

URL = "http://127.0.0.1:1"


def test_the_model_can_be_named_per_call() -> None:
    service = FakeService()
    model = ChatAgentKV(service=service)
    assert model.invoke("hi", model="fake/model").response_metadata["model_name"] == "fake/model"
    with pytest.raises(InvalidRequest, match="'fake/model'") as caught:
        model.invoke("hi", model="other")
    assert caught.value.param == "model"
    with running_server(service) as url:
        remote = ChatAgentKV(base_url=url, model="other")
        assert remote.invoke("hi", model="fake/model").text == "hi"
        with pytest.raises(RemoteError, match="other") as refused:
            remote.invoke("hi")
    assert refused.value.status == 404


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKV_BASE_URL", URL)
    monkeypatch.setenv("AGENTKV_API_KEY", "secret")
    model = ChatAgentKV()
    assert model.base_url == URL
    assert model.api_key is not None
    assert model.api_key.get_secret_value() == "secret"
    assert ChatAgentKV(service=FakeService()).base_url is None


def test_traces_name_model_and_settings() -> None:
    model = ChatAgentKV(service=FakeService(), max_tokens=9, stop=["x"])
    assert model._get_ls_params() == {
        "ls_provider": "agentkv",
        "ls_model_name": "fake/model",
        "ls_model_type": "chat",
        "ls_temperature": 0.0,
        "ls_max_tokens": 9,
        "ls_stop": ["x"],
    }
    assert model._get_ls_params(model="other", stop=[]).get("ls_model_name") == "other"


def test_the_profile_says_what_it_can() -> None:
    profile = ChatAgentKV(service=FakeService(context_length=100)).profile
    assert profile is not None
    assert (profile.get("tool_calling"), profile.get("structured_output")) == (True, True)
    assert profile.get("max_input_tokens") == 99
    remote = ChatAgentKV(base_url=URL).profile
    assert remote is not None
    assert "max_input_tokens" not in remote


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_a_model_on_a_url_can_be_saved_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKV_API_KEY", "very-secret")
    model = ChatAgentKV(base_url=URL, temperature=0.5, stop=["x"])
    saved = dumpd(model)
    assert "very-secret" not in str(saved)
    loaded = load(saved, valid_namespaces=["langchain_agentkv"], allowed_objects=[ChatAgentKV], secrets_from_env=True)
    assert loaded == model
    assert dumpd(ChatAgentKV(service=FakeService()))["type"] == "not_implemented"


def test_caches_tell_models_and_settings_apart() -> None:
    cache, services = InMemoryCache(), [FakeService(), FakeService()]
    for service in services:
        for fields in ({}, {"max_tokens": 1}, {}):
            ChatAgentKV(service=service, cache=cache, **fields).invoke("one two")
    assert [len(service.requests) for service in services] == [2, 2]


def test_callers_learn_of_unknown_fields() -> None:
    fields: dict[str, Any] = {"temprature": 1}
    with pytest.raises(ValueError, match="temprature"):
        ChatAgentKV(base_url=URL, **fields)
