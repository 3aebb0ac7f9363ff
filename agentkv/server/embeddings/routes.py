"""`/v1/embeddings`: texts as vectors; they run in the same steps as chats."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from agentkv.server.answers import answers
from agentkv.server.disconnect import unless_disconnected
from agentkv.server.embeddings.answer import EmbeddingsAnswer
from agentkv.server.embeddings.body import EmbeddingsBody
from agentkv.server.hosted import HostedService
from agentkv.server.served_chat import took_too_long
from agentkv.server.serving import Serving


def embedding_routes(serving: Serving, service: HostedService) -> APIRouter:
    """The route of embeddings."""
    router = APIRouter()

    @router.post("/v1/embeddings", **answers(EmbeddingsAnswer))
    async def create_embeddings(request: Request, tenant: Annotated[str, Depends(serving.auth)]) -> dict[str, Any]:
        body = await serving.read(request, EmbeddingsBody)
        serving.check_model(body.model)
        inputs = body.inputs(serving.settings.max_embedding_inputs)
        # In a thread: tokenising takes a while, and streams go on meanwhile.
        futures = await asyncio.to_thread(service.embedder.submit, inputs, tenant=tenant)
        together = asyncio.gather(*map(asyncio.wrap_future, futures))
        try:
            async with asyncio.timeout(serving.settings.request_timeout):
                return body.answer(await unless_disconnected(request, together))
        except TimeoutError:
            raise took_too_long(serving.settings.request_timeout) from None
        finally:
            for future in futures:
                future.cancel()

    return router
