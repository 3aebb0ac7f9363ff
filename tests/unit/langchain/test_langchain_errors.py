"""agentkv's errors as LangChain's, and asking again."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core import exceptions as langchain

from agentkv import errors
from agentkv.api import ChatRequest
from agentkv.errors import (
    AgentKVError,
    ConfigError,
    ContextTooLong,
    EngineRestarting,
    InvalidRequest,
    RemoteError,
    ServiceClosed,
)
from fakes import FakeService, FakeStream
from langchain_agentkv import ChatAgentKV, retries
from langchain_agentkv.errors import as_model_error, is_retryable


def remote(status: int | None = None, code: str | None = None) -> RemoteError:
    return RemoteError("no", status=status, code=code)


@pytest.mark.parametrize(
    ("error", "kind", "again"),
    [
        (ContextTooLong("9 tokens"), langchain.ContextOverflowError, False),
        (errors.TemplateRefused("no"), langchain.ModelInvalidRequestError, False),
        (InvalidRequest("no", param="n", code="c"), langchain.ModelInvalidRequestError, False),
        (EngineRestarting("no memory"), langchain.ModelAPIError, True),
        (ServiceClosed("closed"), langchain.ModelAPIError, True),
        (remote(401), langchain.ModelAuthenticationError, False),
        (remote(403), langchain.ModelPermissionDeniedError, False),
        (remote(404), langchain.ModelNotFoundError, False),
        (remote(429), langchain.ModelRateLimitError, True),
        (remote(500), langchain.ModelAPIError, True),
        (remote(code="timeout"), langchain.ModelTimeoutError, True),
        (remote(code="unreachable"), langchain.ModelConnectionError, True),
        (remote(code="connection_broken"), langchain.ModelConnectionError, True),
    ],
)
def test_each_error_is_both(error: AgentKVError, kind: type[Exception], again: bool) -> None:
    found = as_model_error(error)
    assert isinstance(found, kind)
    assert isinstance(found, type(error))
    assert str(found) == str(error)
    assert is_retryable(found) is again
    assert as_model_error(found) is found
    for name in ("param", "code", "status"):
        assert getattr(found, name, None) == getattr(error, name, None)


def test_an_error_without_a_counterpart_stays() -> None:
    error = ConfigError("x")
    assert as_model_error(error) is error


class Flaky(FakeService):
    """Fails so many times before it answers."""

    def __init__(self, failures: int, error: AgentKVError, after: int | None = None) -> None:
        super().__init__()
        self.left, self.error, self.after, self.asked = failures, error, after, 0

    def submit(self, request: ChatRequest, *, tenant: str = "") -> FakeStream:
        self.asked += 1
        if self.left:
            self.left -= 1
            if self.after is None:
                raise self.error
            self.fail_after, self.failure = self.after, self.error
        return super().submit(request, tenant=tenant)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Waits that are noted and not waited."""
    noted: list[float] = []

    async def asleep(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(retries, "_sleep", noted.append)
    monkeypatch.setattr(retries, "_asleep", asleep)
    return noted


def remote_model(service: FakeService, **fields: Any) -> ChatAgentKV:
    """A model that believes its service to be a server."""
    model = ChatAgentKV(base_url="http://127.0.0.1:1", **fields)
    model.__dict__["chat_service"] = service
    return model


def test_a_full_server_is_asked_again(waits: list[float]) -> None:
    service = Flaky(2, remote(429))
    assert remote_model(service).invoke("one two").text == "one two"
    first, second = waits
    assert service.asked == 3
    assert 0.375 <= first <= 0.5
    assert 0.75 <= second <= 1.0


async def test_a_full_server_is_asked_again_asynchronously(waits: list[float]) -> None:
    service = Flaky(1, remote(503))
    assert (await remote_model(service).ainvoke("one")).text == "one"
    assert service.asked == 2


@pytest.mark.parametrize(
    ("service", "asked"),
    [
        (Flaky(9, remote(429)), 3),
        (Flaky(9, remote(401)), 1),
        (Flaky(1, remote(code="connection_broken"), after=1), 1),
    ],
)
def test_what_is_not_asked_again(waits: list[float], service: Flaky, asked: int) -> None:
    with pytest.raises(RemoteError):
        remote_model(service).invoke("one two")
    assert service.asked == asked


def test_a_service_in_this_process_is_asked_once(waits: list[float]) -> None:
    service = Flaky(1, ServiceClosed("closed"))
    with pytest.raises(ServiceClosed):
        ChatAgentKV(service=service).invoke("hi")
    assert service.asked == 1


def test_no_retries(waits: list[float]) -> None:
    service = Flaky(1, remote(429))
    with pytest.raises(langchain.ModelRateLimitError):
        remote_model(service, max_retries=0).invoke("hi")
    assert (service.asked, waits) == (1, [])
