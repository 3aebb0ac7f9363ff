"""Lets work in: only with a key, only so much of one key at a time, and none once the server is to end."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Literal

from fastapi import Request

from agentkv.server.auth import Authenticator
from agentkv.server.errors import ApiError
from agentkv.server.settings import ServerSettings

RETRY_SECONDS = 1
"""What `Retry-After` says: places get free whenever a chat ends."""

_RETRY = {"Retry-After": str(RETRY_SECONDS)}


class Gate:
    """The dependency of every route that makes the engine work: gives the caller's tenant while the work runs.

    The work has ended when the answer has left, or the client has. A request counts as one; chats that it runs beside
    its first (`n`, several prompts) count through `room_for`.

    Args:
        caller: names the caller's tenant.
        settings: how much may run.

    Attributes:
        caller: the dependency of routes that make nobody work.
        draining: nothing more is let in.
    """

    def __init__(self, caller: Authenticator, settings: ServerSettings) -> None:
        self.caller = caller
        self._max_of_key = settings.max_chats_per_key
        self._max = settings.max_chats
        self._running: Counter[str] = Counter()
        self.draining = False

    @property
    def num_running(self) -> int:
        """Chats inside, and requests of other kinds."""
        return self._running.total()

    async def __call__(self, request: Request) -> AsyncIterator[str]:
        """The caller's tenant.

        Raises:
            ApiError: 401 without a known key, 429 where the key has too much running, 503 where all have or the server
                is about to end.
        """
        tenant = await self.caller(request)
        if self.draining:
            message = "the server is about to end and takes no more chats: ask another one"
            raise ApiError(503, message, code="draining", headers=_RETRY)
        with self._counted(tenant, 1):
            yield tenant

    @contextmanager
    def room_for(self, tenant: str, num_chats: int, param: Literal["n", "prompt"] = "n") -> Iterator[None]:
        """Room for all chats of one request, whose first is inside already; given back at the end of the block.

        Args:
            tenant: whose.
            num_chats: with the first.
            param: the field that asks for several.

        Raises:
            ApiError: 400 where so many never fit, 429 and 503 as above.
        """
        most = min(self._max, self._max_of_key or self._max)
        if num_chats > most:
            remedy = "send fewer prompts at once" if param == "prompt" else "ask for fewer replies"
            message = f"{num_chats} chats are asked for at once, and at most {most} may run: {remedy}"
            raise ApiError(400, message, param=param, code="invalid_value")
        with self._counted(tenant, num_chats - 1):
            yield

    @contextmanager
    def _counted(self, tenant: str, count: int) -> Iterator[None]:
        running = self._running[tenant]
        if count and self._max_of_key is not None and running + count > self._max_of_key:
            message = f"this key has {running} chats under way and may have {self._max_of_key}: wait for one to end"
            raise ApiError(429, message, code="rate_limit_exceeded", headers=_RETRY)
        if count and self.num_running + count > self._max:
            message = f"the server has {self.num_running} chats under way and takes {self._max}: ask again later"
            raise ApiError(503, message, code="overloaded", headers=_RETRY)
        self._running[tenant] += count
        try:
            yield
        finally:
            self._running[tenant] -= count
            if not self._running[tenant]:
                del self._running[tenant]
