"""Asking again: for servers that are full or can't be reached, as long as nothing has been read of the reply."""

import asyncio
import random
from asyncio import sleep as _asleep
from collections.abc import AsyncIterator, Iterator
from time import sleep as _sleep

from agentkv.api import ChatDelta, ChatRequest, ChatService
from langchain_agentkv.errors import is_retryable, model_errors

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0


def deltas(service: ChatService, request: ChatRequest, max_retries: int) -> Iterator[ChatDelta]:
    """A chat's deltas; leaving the loop cancels the chat.

    Raises:
        AgentKVError: as one of LangChain's errors.
    """
    for attempt in range(max_retries + 1):
        started = False
        try:
            with model_errors():
                stream = service.submit(request)
                try:
                    for delta in stream:
                        started = True
                        yield delta
                finally:
                    stream.cancel()
            return
        except Exception as error:
            if started or attempt == max_retries or not is_retryable(error):
                raise
        _sleep(_wait(attempt))


async def adeltas(service: ChatService, request: ChatRequest, max_retries: int) -> AsyncIterator[ChatDelta]:
    """As `deltas`."""
    for attempt in range(max_retries + 1):
        started = False
        try:
            with model_errors():
                stream = await asyncio.to_thread(service.submit, request)  # it tokenises
                try:
                    async for delta in stream:
                        started = True
                        yield delta
                finally:
                    stream.cancel()
            return
        except Exception as error:
            if started or attempt == max_retries or not is_retryable(error):
                raise
        await _asleep(_wait(attempt))


def _wait(attempt: int) -> float:
    """Seconds, doubled each time, with some chance in them so that clients don't come back together."""
    return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * (0.75 + random.random() / 4)
