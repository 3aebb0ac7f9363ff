"""Requests through an engine, so many at once, and what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, TokenSources


@dataclass(slots=True, kw_only=True)
class Reply:
    """What the engine gave for one request.

    Attributes:
        token_ids: emitted.
        chunks: float32 [n_i, vocabulary], if logits were asked for.
        sources: where the prompt's KV came from.
        seconds: from the request's start to its first token.
    """

    token_ids: tuple[int, ...] = ()
    chunks: list[torch.Tensor] = field(default_factory=list)
    sources: TokenSources | None = None
    seconds: float = 0.0

    @property
    def logits(self) -> torch.Tensor:
        """Logits behind every token."""
        return torch.cat(self.chunks)


class Driver:
    """Runs requests to their end with continuous batching.

    Args:
        engine: runs them; nobody else uses it meanwhile.
        batch: most requests in the engine at once. With 1, `Reply.seconds` is time to first token of a request alone.
    """

    def __init__(self, engine: Engine, batch: int) -> None:
        self.engine = engine
        self._batch = batch

    def run(
        self, requests: Iterable[Request], on_end: Callable[[str, Reply], None] = lambda _request_id, _reply: None
    ) -> dict[str, Reply]:
        """Replies by request id. `on_end` is called right after a request's last step, while its KV can be kept; what
        it takes out of a reply is not held until the others end.

        Raises:
            EngineError: a request failed.
        """
        waiting = iter(requests)
        replies: dict[str, Reply] = {}
        started: dict[str, float] = {}
        while True:
            while len(started) < self._batch and (request := next(waiting, None)) is not None:
                self.engine.add(request)
                started[request.request_id] = time.perf_counter()
                replies[request.request_id] = Reply()
            if not started:
                break
            for output in self.engine.step():
                if output.error is not None:
                    raise output.error
                reply = replies[output.request_id]
                if output.sources is not None:
                    reply.sources = output.sources
                if output.admitted_at is not None:
                    reply.seconds = time.perf_counter() - started[output.request_id]
                reply.token_ids += output.token_ids
                if output.logits is not None:
                    reply.chunks.append(output.logits)
                if output.finish_reason is not None:
                    del started[output.request_id]
                    on_end(output.request_id, reply)
        self.engine.release_finished()
        return replies
