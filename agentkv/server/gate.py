"""Lets work in: only with a key, only so much of one key at a time, and none once the server is to end."""

from collections import Counter
from collections.abc import AsyncIterator

from fastapi import Request

from agentkv.server.auth import Authenticator
from agentkv.server.errors import ApiError
from agentkv.server.settings import ServerSettings

RETRY_SECONDS = 1
"""What `Retry-After` says: places get free whenever a chat ends."""


class Gate:
    """The dependency of every route that makes the engine work: gives the caller's tenant while the work runs.

    The work has ended when the answer has left, or the client has.

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
        """Requests inside."""
        return self._running.total()

    async def __call__(self, request: Request) -> AsyncIterator[str]:
        """The caller's tenant.

        Raises:
            ApiError: 401 without a known key, 429 where the key has too much running, 503 where all have or the server
                is about to end.
        """
        tenant = await self.caller(request)
        self._check(tenant)
        self._running[tenant] += 1
        try:
            yield tenant
        finally:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]

    def _check(self, tenant: str) -> None:
        retry = {"Retry-After": str(RETRY_SECONDS)}
        if self.draining:
            message = "the server is about to end and takes no more chats: ask another one"
            raise ApiError(503, message, code="draining", headers=retry)
        if self._max_of_key is not None and self._running[tenant] >= self._max_of_key:
            message = f"this key has {self._running[tenant]} requests under way, the most it may have: wait for one"
            raise ApiError(429, message, code="rate_limit_exceeded", headers=retry)
        if self.num_running >= self._max:
            message = f"the server has {self.num_running} requests under way, the most it takes: ask again later"
            raise ApiError(503, message, code="overloaded", headers=retry)
