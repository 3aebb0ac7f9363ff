"""What operators and clients ask besides chats: models, health, readiness, version, metrics."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import agentkv
from agentkv.metrics import CONTENT_TYPE, Metrics
from agentkv.server.answers import ModelAnswer, ModelsAnswer, StatusAnswer, VersionAnswer, answers
from agentkv.server.auth import Authenticator, MetricsAuthenticator
from agentkv.server.errors import ApiError, model_not_found
from agentkv.server.gate import Gate
from agentkv.server.hosted import HostedService


def model_routes(service: HostedService, created: int, auth: Authenticator) -> APIRouter:
    """`/v1/models`: the one that is served. `created` is the Unix time to show for it."""
    router = APIRouter(dependencies=[Depends(auth)])

    def served() -> dict[str, Any]:
        return {
            "id": service.model_id,
            "object": "model",
            "created": created,
            "owned_by": "agentkv",
            "max_model_len": service.context_length,
        }

    @router.get("/v1/models", **answers(ModelsAnswer))
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [served()]}

    @router.get("/v1/models/{model:path}", **answers(ModelAnswer))  # names of hubs have slashes
    async def retrieve_model(model: str) -> dict[str, Any]:
        if model != service.model_id:
            raise model_not_found(model, service.model_id)
        return served()

    return router


def operation_routes(
    service: HostedService, metrics: Metrics, gate: Gate, may_see_metrics: MetricsAuthenticator
) -> APIRouter:
    """Health, without figures, and version for everybody; metrics, which show what all keys do, for operators."""
    router = APIRouter()

    @router.get("/health", **answers(StatusAnswer))
    async def health() -> JSONResponse:
        status = service.health()["status"]
        if status == "ok":
            return JSONResponse({"status": status})
        return JSONResponse(not_ready(status).envelope() | {"status": status}, status_code=503)

    @router.get("/ready", **answers(StatusAnswer))
    async def ready() -> dict[str, str]:
        status = "draining" if gate.draining else service.health()["status"]
        if status != "ok":
            raise not_ready(status)
        return {"status": "ready"}

    @router.get("/version", **answers(VersionAnswer))
    async def version() -> dict[str, str]:
        return {"version": agentkv.__version__}

    @router.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(may_see_metrics)])
    def show_metrics() -> Response:
        # Not a coroutine: reading the KV held may wait for a step, and chats stream on meanwhile.
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return router


def not_ready(status: str) -> ApiError:
    """The answer of a service that takes no chats."""
    return ApiError(503, f"the service takes no chats: its status is {status!r}", code="not_ready")
