"""Texts to vectors: mean-pooled last hidden states, in the same steps as the chats that run."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count

import numpy as np

from agentkv.api import Embedding
from agentkv.engine_failures import failure_of
from agentkv.engine_thread import EngineThread
from agentkv.errors import ContextTooLong, InvalidRequest, ServiceClosed
from agentkv.owner import owner_of
from agentkv.tokenization import ChatTokenizer
from agentkv_engine.engine import Engine
from agentkv_engine.errors import RequestRefused
from agentkv_engine.request import Output, Request, ReuseMode, StepOutput

_IDS = "embedding-"


class Embedder:
    """Runs embeddings; what the engine brings for them goes to `take`.

    Args:
        engine, thread: the engine and its thread.
        tokenizer: the model's.
        max_tokens: most tokens of a text.
    """

    def __init__(self, engine: Engine, thread: EngineThread, tokenizer: ChatTokenizer, max_tokens: int) -> None:
        self._engine = engine
        self._thread = thread
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._ids = count()
        self._running: dict[str, Future[Embedding]] = {}

    def submit(self, inputs: Sequence[str | Sequence[int]], *, tenant: str = "") -> list[Future[Embedding]]:
        """Start embedding texts, or their tokens; cancelling a future aborts its work.

        Raises:
            InvalidRequest: an input that can't be embedded; none is started then.
            ServiceClosed: nothing runs any more.
        """
        requests = [
            Request(
                request_id=f"{_IDS}{next(self._ids)}",
                token_ids=self._tokens(text, index),
                output=Output.POOLED_STATES,
                mode=ReuseMode.OFF,
                tenant=owner_of(tenant, ""),
            )
            for index, text in enumerate(inputs)
        ]
        futures: list[Future[Embedding]] = [Future() for _ in requests]

        def add() -> None:
            for request, future in zip(requests, futures, strict=True):
                self._add(request, future)

        self._thread.post(add)
        return futures

    def take(self, output: StepOutput) -> bool:
        """Take in an output; False where it is none of an embedding's. Engine thread only."""
        if not output.request_id.startswith(_IDS):
            return False
        future = self._running.pop(output.request_id, None)
        if future is None or not future.set_running_or_notify_cancel():
            return True
        if output.error is not None:
            future.set_exception(failure_of(output.error, param="input"))
            return True
        try:
            future.set_result(_embedding(output))
        except Exception as error:  # a fault ends this request, not the thread
            future.set_exception(error)
        return True

    def fail_all(self, error: Exception) -> None:
        """Nothing runs any more."""
        for future in list(self._running.values()):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._running.clear()

    def _add(self, request: Request, future: "Future[Embedding]") -> None:
        if future.cancelled():
            return
        try:
            self._engine.add(request)
        except Exception as error:  # a fault ends this request, not the thread
            if future.set_running_or_notify_cancel():
                refused = isinstance(error, RequestRefused)
                future.set_exception(InvalidRequest(str(error), param="input") if refused else error)
            return
        self._running[request.request_id] = future
        future.add_done_callback(lambda done: self._abort(request.request_id) if done.cancelled() else None)

    def _abort(self, request_id: str) -> None:
        def abort() -> None:
            if self._running.pop(request_id, None) is not None:
                self._engine.abort(request_id)

        with suppress(ServiceClosed):
            self._thread.post(abort)

    def _tokens(self, text: str | Sequence[int], index: int) -> tuple[int, ...]:
        token_ids = self._tokenizer.encode(text) if isinstance(text, str) else tuple(text)
        if not token_ids:
            raise InvalidRequest(f"input[{index}] is empty: give some text", param="input", code="empty_input")
        if not 0 <= min(token_ids) <= max(token_ids) < self._tokenizer.num_tokens:
            raise InvalidRequest(
                f"input[{index}] has token ids outside 0..{self._tokenizer.num_tokens - 1}", param="input"
            )
        if len(token_ids) > self._max_tokens:
            raise ContextTooLong(
                f"input[{index}] has {len(token_ids)} tokens, and at most {self._max_tokens} fit: cut it into parts",
                param="input",
            )
        return token_ids


def _embedding(output: StepOutput) -> Embedding:
    assert output.pooled is not None, "the request ended without its states"
    assert output.sources is not None, "the request ended without its sources"
    vector = output.pooled.numpy().astype(np.float32)
    norm = float(np.linalg.norm(vector))
    return Embedding(vector=vector / norm if norm else vector, num_tokens=output.sources.prompt)
