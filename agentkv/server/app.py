"""The HTTP application over a service, and the process that serves it."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

import agentkv
from agentkv.errors import ServiceClosed
from agentkv.metrics import Metrics
from agentkv.server.auth import Authenticator
from agentkv.server.chat.routes import chat_routes
from agentkv.server.errors import install_error_handlers
from agentkv.server.gate import Gate
from agentkv.server.operations import HostedService, model_routes, operation_routes
from agentkv.server.request_id import RequestIds
from agentkv.server.serving import Serving
from agentkv.server.settings import ServerSettings


def create_app(service: HostedService, settings: ServerSettings | None = None) -> FastAPI:
    """The OpenAI-compatible API over `service`, which stays the caller's to close."""
    settings = settings or ServerSettings()
    metrics = Metrics(max_agent_labels=settings.max_agent_labels, kv_bytes=lambda: _kv_bytes(service))
    salt = settings.tenant_salt
    auth = Authenticator(settings.api_keys, salt.get_secret_value().encode() if salt is not None else None)
    # Bodies are read and checked by `read_body`, not by FastAPI, so it has no schema of them to publish.
    app = FastAPI(title="agentkv", version=agentkv.__version__, openapi_url=None, redirect_slashes=False)
    install_error_handlers(app)
    app.add_middleware(RequestIds)
    serving = Serving(service=service, settings=settings, metrics=metrics, auth=Gate(auth, settings))
    app.include_router(chat_routes(serving))
    app.include_router(model_routes(service, int(time.time()), auth))
    app.include_router(operation_routes(service, metrics, auth))
    return app


def _kv_bytes(service: HostedService) -> dict[str, int]:
    try:
        return {"pool": service.memory().kept_bytes}
    except ServiceClosed:  # it holds nothing any more
        return {}


def serve(service: HostedService, host: str, port: int, settings: ServerSettings | None = None) -> None:
    """Serve until SIGTERM or SIGINT, let running chats finish within the grace, then return.

    The service stays the caller's to close.
    """
    settings = settings or ServerSettings()
    config = uvicorn.Config(
        create_app(service, settings),
        host=host,
        port=port,
        access_log=settings.access_log,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
        server_header=False,
    )
    with _signals_end_the_server_only():
        uvicorn.Server(config).run()


@contextlib.contextmanager
def _signals_end_the_server_only() -> Iterator[None]:
    """When it is done, uvicorn raises the signals that it has caught once more, which would end the process before the
    caller has closed the service: inside, they find a handler that does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
