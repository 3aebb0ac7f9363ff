"""Names every request, so that an answer can be found again in the server's log."""

import uuid
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_current: ContextVar[str] = ContextVar("agentkv_request_id", default="")


def request_id() -> str:
    """The id of the request under way, empty outside one."""
    return _current.get()


class RequestIds:
    """ASGI middleware: draws an id for each request and sends it along as `x-request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = f"req_{uuid.uuid4().hex}"

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER, name.encode("ascii"))]
            await send(message)

        scope.setdefault("state", {})["request_id"] = name
        token = _current.set(name)
        try:
            await self._app(scope, receive, send_named)
        finally:
            _current.reset(token)
