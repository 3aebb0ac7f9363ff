"""The HTTP application over a service, and the process that serves it."""

import gc
import ipaddress
import logging
import sys
import time

import uvicorn
from fastapi import FastAPI

import agentkv
from agentkv.agent_statistics import AgentStatistics
from agentkv.errors import ServiceClosed
from agentkv.metrics import Metrics
from agentkv.server.auth import Authenticator, MetricsAuthenticator
from agentkv.server.chat.body import ChatBody
from agentkv.server.chat.routes import chat_routes
from agentkv.server.completions.body import CompletionBody
from agentkv.server.completions.routes import completion_routes
from agentkv.server.connection import connection_class
from agentkv.server.drain import DrainingServer, late_signals_ignored
from agentkv.server.embeddings.body import EmbeddingsBody
from agentkv.server.embeddings.routes import embedding_routes
from agentkv.server.errors import install_error_handlers
from agentkv.server.gate import Gate
from agentkv.server.hosted import HostedService
from agentkv.server.messages.body import AnthropicBody, PromptBody
from agentkv.server.messages.routes import message_routes
from agentkv.server.openapi import describe
from agentkv.server.operations import model_routes, operation_routes
from agentkv.server.request_id import RequestIds
from agentkv.server.responses.body import ResponseBody
from agentkv.server.responses.routes import response_routes
from agentkv.server.segments.routes import WarmBody, segment_routes
from agentkv.server.serving import Serving
from agentkv.server.settings import ServerSettings
from agentkv.server.tokens import DetokenizeBody, TokenizeBody, token_routes

_BODIES = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponseBody,
    "/v1/messages": AnthropicBody,
    "/v1/messages/count_tokens": PromptBody,
    "/v1/embeddings": EmbeddingsBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
    "/v1/agentkv/segments/warm": WarmBody,
}
_SWITCH_SECONDS = 5e-4
"""How long one thread keeps another from running: the engine's plans its steps in Python while the loop has to send the
tokens of the last one, and the loop sends while the engine waits to begin."""

_logger = logging.getLogger("uvicorn.error")


def create_app(service: HostedService, settings: ServerSettings | None = None, gate: Gate | None = None) -> FastAPI:
    """The OpenAI-compatible API over `service`, which stays the caller's to close."""
    settings = settings or ServerSettings()
    gate = gate or make_gate(settings)
    metrics = Metrics(
        max_agent_labels=settings.max_agent_labels,
        kv_bytes=lambda: _kv_bytes(service),
        running=lambda: gate.num_running,
    )
    app = FastAPI(title="agentkv", version=agentkv.__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    install_error_handlers(app)
    app.add_middleware(RequestIds)
    statistics = AgentStatistics(max_agents=settings.max_agent_labels)
    serving = Serving(service=service, settings=settings, metrics=metrics, statistics=statistics, auth=gate)
    for routes in (chat_routes, completion_routes, response_routes):
        app.include_router(routes(serving))
    app.include_router(message_routes(serving, service))
    app.include_router(embedding_routes(serving, service))
    app.include_router(token_routes(serving, service))
    app.include_router(segment_routes(serving, service))
    app.include_router(model_routes(service, int(time.time()), gate.caller))
    app.include_router(operation_routes(service, metrics, gate, _metrics_authenticator(settings, gate.caller)))
    describe(app, _BODIES, model_id=service.model_id, needs_key=bool(settings.all_api_keys()))
    return app


def make_gate(settings: ServerSettings) -> Gate:
    """The gate that these settings describe."""
    salt = settings.tenant_salt
    caller = Authenticator(settings.all_api_keys(), salt.get_secret_value().encode() if salt is not None else None)
    return Gate(caller, settings)


def _metrics_authenticator(settings: ServerSettings, caller: Authenticator) -> MetricsAuthenticator:
    key = settings.metrics_key
    return MetricsAuthenticator(caller, len(settings.all_api_keys()), key.get_secret_value() if key else None)


def _kv_bytes(service: HostedService) -> dict[str, int]:
    try:
        return service.kv_bytes()
    except ServiceClosed:  # it holds nothing any more
        return {}


def serve(service: HostedService, host: str, port: int, settings: ServerSettings | None = None) -> None:
    """Serve until SIGTERM or SIGINT, let running chats finish within the grace, then return.

    The service stays the caller's to close.
    """
    settings = settings or ServerSettings()
    if not settings.all_api_keys() and not _is_loopback(host):
        _logger.warning("%s is open to others and no API key is set: anybody who reaches it may use it", host)
    gate = make_gate(settings)
    gc.collect()
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # what is loaded by now stays: a collection that goes through it takes as long as several steps
    config = uvicorn.Config(
        create_app(service, settings, gate),
        host=host,
        port=port,
        http=connection_class(settings.read_timeout, settings.write_timeout),
        ws="none",
        access_log=settings.access_log,
        timeout_graceful_shutdown=1,  # what outlasts the drain is cut
        server_header=False,
    )
    with late_signals_ignored():
        DrainingServer(config, gate, settings.shutdown_grace).run()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
