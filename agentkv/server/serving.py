"""What every endpoint that runs chats does: read and check a body, submit, count, and hand the client what comes."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from fastapi import Request

from agentkv.agent_statistics import AgentStatistics
from agentkv.api import ChatRequest, ChatService
from agentkv.metrics import Metrics
from agentkv.server.body import Body, read_body
from agentkv.server.errors import ApiError, from_service_error, model_not_found
from agentkv.server.gate import Gate
from agentkv.server.served_chat import Counting, ServedChat, ServedChats
from agentkv.server.settings import ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A service, and what the server knows beside it. Endpoint families take their routes' needs from here."""

    service: ChatService
    settings: ServerSettings
    metrics: Metrics
    statistics: AgentStatistics
    auth: Gate

    async def read(self, request: Request, model: type[Body]) -> Body:
        """The request's body; see `read_body`."""
        return await read_body(request, model, self.settings.max_body_bytes)

    def check_model(self, asked: str) -> None:
        """Raises ApiError 404 for a model that is not served."""
        if asked != self.service.model_id:
            raise model_not_found(asked, self.service.model_id)

    async def submit(
        self, requests: Sequence[ChatRequest], tenant: str, choices_each: int | None = None
    ) -> ServedChats:
        """Start a chat for each choice; if one can't be started, none is.

        Args:
            requests: what is asked for.
            tenant: whose.
            choices_each: choices of each prompt; None where all have the same.

        Raises:
            ApiError: what can never run, or has no room now.
        """
        asked, most = choices_each or len(requests), self.settings.max_choices
        if asked > most:
            message = f"{asked} replies are asked for, and this server gives at most {most}"
            raise ApiError(400, message, param="n", code="invalid_value")
        started: list[ServedChat] = []
        with ExitStack() as undo:
            param = "prompt" if len(requests) > asked else "n"
            undo.enter_context(self.auth.room_for(tenant, len(requests), param))
            for request in requests:
                # In a thread: tokenising a long prompt takes a while, and other streams go on meanwhile.
                stream = await asyncio.to_thread(self.service.submit, request, tenant=tenant)
                started.append(ServedChat(stream, Counting(self.metrics, self.statistics, tenant)))
                undo.callback(started[-1].leave)
            return ServedChats(started, self.settings, undo.pop_all().close, choices_each)

    def refusal(self, error: Exception) -> ApiError:
        """The answer to a request of which no chat ran, counted."""
        failure = from_service_error(error)
        self.metrics.count_request(failure.code or str(failure.status))
        return failure
