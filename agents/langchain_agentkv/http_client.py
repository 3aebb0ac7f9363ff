"""HTTP clients for those who keep `ChatOpenAI` (or the `openai` SDK): they say which agent and thread a chat is for.

    model = ChatOpenAI(
        base_url="http://127.0.0.1:8000/v1",
        http_client=agentkv_http_client(),
        http_async_client=agentkv_async_http_client(),
    )

The OpenAI wire format has no place for what LangGraph knows. These clients read it from the run that is under way and
add it to the body as fields that an agentkv server knows. A field that the application set itself stays.
"""

import json
from typing import Any

import httpx
from langchain_core.runnables import ensure_config

from langchain_agentkv.provenance import Provenance

_CHATS = "/chat/completions"


def agentkv_http_client(**options: Any) -> httpx.Client:
    """A client for `http_client`; `options` are `httpx.Client`'s, e.g. `timeout` or `verify`."""
    return _Client(**_with_timeout(options))


def agentkv_async_http_client(**options: Any) -> httpx.AsyncClient:
    """A client for `http_async_client`; `options` are `httpx.AsyncClient`'s."""
    return _AsyncClient(**_with_timeout(options))


class _Client(httpx.Client):
    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        return super().send(_with_provenance(request), **options)


class _AsyncClient(httpx.AsyncClient):
    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        return await super().send(_with_provenance(request), **options)


def _with_timeout(options: dict[str, Any]) -> dict[str, Any]:
    """httpx gives up after five seconds, which a long prompt can take."""
    return {"timeout": httpx.Timeout(600.0, connect=10.0), **options}


def _with_provenance(request: httpx.Request) -> httpx.Request:
    """The request with agent and thread in its body, if it is a chat and a run is under way."""
    fields = _fields(Provenance.of(ensure_config().get("metadata", {})))
    if not fields or request.method != "POST" or not request.url.path.endswith(_CHATS):
        return request
    body = json.loads(request.read())
    headers = [(name, value) for name, value in request.headers.multi_items() if name.lower() != "content-length"]
    return httpx.Request(
        request.method,
        request.url,
        headers=headers,
        content=json.dumps(fields | body).encode(),
        extensions=request.extensions,
    )


def _fields(provenance: Provenance) -> dict[str, str]:
    """The body's fields; `session_id` takes part in nothing that decides about reuse."""
    fields = {"agent_hint": provenance.agent, "session_id": provenance.thread}
    return {name: value for name, value in fields.items() if value is not None}
