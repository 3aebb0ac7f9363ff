"""API keys: who is let in, and that a tenant is the key's and nothing that a caller can choose."""

from collections.abc import Iterator

import httpx
import pytest

from agentkv.errors import ConfigError
from agentkv.server.app import create_app
from agentkv.server.settings import ServerSettings
from fakes import FakeService, running_server

KEYS = ("alpha-key", "beta-key", "schlüssel")
SERVICE = FakeService()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SERVICE, ServerSettings(api_keys=KEYS)) as url:
        yield url


def ask(url: str, key: str | None, **fields: object) -> httpx.Response:
    headers = {} if key is None else {b"Authorization": b"Bearer " + key.encode()}
    body = {"model": "fake/model", "messages": [{"role": "user", "content": "same text"}], **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)


def test_a_key_is_a_tenant_of_its_own(url: str) -> None:
    SERVICE.tenants.clear()
    for key in (*KEYS, *KEYS):
        assert ask(url, key).status_code == 200
    assert len(set(SERVICE.tenants)) == len(KEYS)
    assert SERVICE.tenants[: len(KEYS)] == SERVICE.tenants[len(KEYS) :]
    assert not any(key in tenant for key in KEYS for tenant in SERVICE.tenants)


def test_no_field_of_the_caller_changes_the_tenant(url: str) -> None:
    SERVICE.tenants.clear()
    ask(url, "alpha-key")
    ask(url, "alpha-key", user="somebody", cache_salt="else", agent_hint="x", session_id="y")
    assert len(set(SERVICE.tenants)) == 1
    assert SERVICE.requests[-1].cache_salt == "else"
    assert ask(url, "alpha-key", tenant="beta").status_code == 400


def test_tokens_are_counted_for_the_tenant_whose_key_it_is(url: str) -> None:
    """What was generated before has the tokens it had: for the tenant that asked for it, and for no other."""
    SERVICE.tenants.clear()
    for key in KEYS[:2]:
        ask(url, key)
        body = {"model": "fake/model", "messages": [{"role": "user", "content": "x"}], "cache_salt": "salt"}
        answer = httpx.post(f"{url}/v1/messages/count_tokens", json=body, headers=bearer(key))
        assert answer.json() == {"input_tokens": 1}
        assert SERVICE.requests[-1].cache_salt == "salt"
    asked, counted, asked_other, counted_other = SERVICE.tenants
    assert asked == counted != asked_other == counted_other


def test_anthropic_s_header_does_as_well(url: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "beta-key"}).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "gamma-key"}).status_code == 401


def test_servers_with_one_salt_agree_on_tenants() -> None:
    tenants = []
    for salt in ("a salt of some length", "a salt of some length", "another salt altogether"):
        service = FakeService()
        with running_server(service, ServerSettings.from_values(api_keys=KEYS, tenant_salt=salt)) as url:
            ask(url, "alpha-key")
        tenants += service.tenants
    assert tenants[0] == tenants[1] != tenants[2]


def test_the_salt_is_the_process_s(url: str) -> None:
    other = FakeService()
    SERVICE.tenants.clear()
    with running_server(other, ServerSettings(api_keys=KEYS)) as second:
        ask(second, "alpha-key")
    ask(url, "alpha-key")
    assert other.tenants[0] != SERVICE.tenants[0]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer alpha", "Basic alpha-key", "alpha-key"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/models/fake/model", "/metrics"])
def test_without_a_known_key_there_is_a_401(url: str, path: str, header: str | None) -> None:
    SERVICE.requests.clear()
    headers = {} if header is None else {"Authorization": header}
    method = "POST" if "chat" in path else "GET"
    response = httpx.request(method, url + path, headers=headers, content=b"not even JSON")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert not any(key in response.text for key in KEYS)
    assert not SERVICE.requests


def test_health_needs_no_key(url: str) -> None:
    assert [httpx.get(url + path).status_code for path in ("/health", "/ready", "/version")] == [200] * 3


def test_health_shows_nothing_of_what_runs(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_one_of_several_keys_does_not_see_what_the_others_do(url: str) -> None:
    answer = httpx.get(f"{url}/metrics", headers=bearer("alpha-key"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert "agentkv_" not in answer.text


def test_the_only_key_sees_its_own_metrics_and_so_does_everybody_without_keys() -> None:
    with running_server(FakeService(), ServerSettings(api_keys=("one-key",))) as url:
        assert "agentkv_running_chats 0.0" in httpx.get(f"{url}/metrics", headers=bearer("one-key")).text
    with running_server(FakeService()) as url:
        assert httpx.get(f"{url}/metrics").status_code == 200


@pytest.mark.parametrize("api_keys", [(), ("one-key",), KEYS])
def test_the_metrics_key_opens_the_metrics_and_nothing_else(api_keys: tuple[str, ...]) -> None:
    settings = ServerSettings.from_values(api_keys=api_keys, metrics_key="for-prometheus")
    with running_server(FakeService(), settings) as url:
        answers = [httpx.get(f"{url}/metrics", headers=bearer(key)) for key in ("for-prometheus", "one-key", "x")]
        assert [answer.status_code for answer in answers] == [200, 401, 401]
        assert httpx.get(f"{url}/metrics").status_code == 401
        models = httpx.get(f"{url}/v1/models", headers=bearer("for-prometheus"))
        assert models.status_code == (401 if api_keys else 200)


def test_a_metrics_key_that_is_an_api_key_is_refused() -> None:
    settings = ServerSettings.from_values(api_keys=KEYS, metrics_key=KEYS[1])
    with pytest.raises(ConfigError, match="take another"):
        create_app(FakeService(), settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_keys": ("", "x")},
        {"metrics_key": " "},
        {"tenant_salt": "short"},
        {"max_body_bytes": 10},
        {"max_chats_per_key": 0},
        {"request_timeout": float("nan")},
        {"default_temperature": 3.0},
        {"max_agent_labels": 0},
        {"shutdown_grace": -1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=name) as caught:
        ServerSettings.from_values(**settings)
    assert "short'" not in str(caught.value)  # secrets are not shown
