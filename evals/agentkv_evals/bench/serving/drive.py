"""Keeps so many conversations going with a service for a while, and records every prompt that was answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from agentkv.api import ChatRequest, ChatService, Reuse, Usage
from agentkv.sampling import Sampling
from agentkv_evals.bench.serving.conversations import Ask, Conversation

STAGGER = 0.2
"""Conversations start one after the other during this share of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way of answering: how much kept KV is read, and the rule of a screened arm."""

    reuse: Reuse
    selector: str | None = None

    @property
    def name(self) -> str:
        """As shown."""
        return "full" if self.reuse is Reuse.OFF else self.selector or self.reuse.value


@dataclass(slots=True, kw_only=True)
class Driven:
    """What came of driving a service.

    Attributes:
        seconds: how long it took.
        conversations: those that came to their end.
        answered: usage of each prompt whose whole reply came.
    """

    seconds: float = 0.0
    conversations: int = 0
    answered: list[Usage] = field(default_factory=list)


async def drive(
    service: ChatService,
    arm: Arm,
    make: Callable[[int, str], Conversation],
    *,
    concurrency: int,
    seconds: float,
    most: int | None,
    name: str,
) -> Driven:
    """Keep `concurrency` conversations going: as one ends, the next begins.

    Args:
        make: the conversation of a number, under a name.
        seconds: what is under way then is cut off.
        most: conversations in all; None sets no limit.
        name: of this run; no other may have it.

    Raises:
        AgentKVError: what a chat raised.
    """
    driven, numbers = Driven(), iter(range(most if most is not None else 1 << 30))

    async def worker(rank: int) -> None:
        await asyncio.sleep(STAGGER * seconds * rank / concurrency)
        for number in numbers:
            await _converse(service, arm, make(number, f"{name} {number}"), driven)
            driven.conversations += 1

    started = time.perf_counter()
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for rank in range(concurrency):
                group.create_task(worker(rank))
    except TimeoutError:
        pass
    except ExceptionGroup as group_error:
        raise _first(group_error) from None
    driven.seconds = time.perf_counter() - started
    return driven


def _first(error: Exception) -> Exception:
    """The first of errors that came together."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _converse(service: ChatService, arm: Arm, conversation: Conversation, driven: Driven) -> None:
    for asks in conversation.rounds:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answer(service, arm, ask, conversation.name, driven)) for ask in asks]
        conversation.said = [task.result() for task in tasks]


async def _answer(service: ChatService, arm: Arm, ask: Ask, tenant: str, driven: Driven) -> str:
    request = ChatRequest(
        messages=ask.messages,
        max_tokens=ask.max_tokens,
        temperature=1.0,
        seed=0,
        sampling=Sampling(ignore_eos=ask.reply is None),
        forced_reply=ask.reply,
        reuse=arm.reuse,
        selector=arm.selector,
        agent=ask.agent,
    )
    pieces = []
    async with _chat(service, request, tenant) as deltas:
        async for delta in deltas:
            pieces.append(delta.text)
            if delta.usage is not None:
                driven.answered.append(delta.usage)
    return "".join(pieces)


@asynccontextmanager
async def _chat(service: ChatService, request: ChatRequest, tenant: str) -> AsyncIterator[AsyncIterator]:
    """A chat's deltas; it is cancelled where its reader is."""
    stream = await asyncio.to_thread(service.submit, request, tenant=tenant)  # tokenising takes a while
    try:
        yield aiter(stream)
    finally:
        stream.cancel()
