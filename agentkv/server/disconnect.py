"""Work for a client that may go away."""

import asyncio
from typing import TypeVar

from fastapi import Request

from agentkv.server.errors import client_gone

T = TypeVar("T")


async def unless_disconnected(request: Request, work: "asyncio.Future[T]") -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up; the body must have been read.

    Raises:
        ApiError: 499, the client is gone.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.wait([work, watching], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise client_gone()
        return work.result()
    finally:
        watching.cancel()
        work.cancel()
