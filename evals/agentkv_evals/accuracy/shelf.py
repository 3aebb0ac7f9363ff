"""Kept KV of the items under way: authors' messages for all, and what each arm computed for itself alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from agentkv_engine.engine import Engine
from agentkv_engine.errors import UnknownHandle
from agentkv_engine.reuse import Resident
from agentkv_evals.accuracy.cases import Case, Message, reply_source
from agentkv_evals.accuracy.requests import author_id


class Shelf:
    """Residents by name. A *lane* is an arm, or an arm on its own way; no lane finds what another one keeps.

    Leaving the context releases all.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._residents: dict[str, Resident] = {}

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for resident in self._residents.values():
            with suppress(UnknownHandle):  # evicted; the reply that missed it says so
                self._engine.release(resident.handle)
        self._residents.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._residents

    def put(self, name: str, request_id: str, start: int, end: int) -> None:
        """Keep positions [start, end) of a request that is in the engine."""
        self._residents[name] = self._engine.keep(request_id, start, end)

    def keep_step(self, request_id: str, case: Case, num_reply: int, *, lane: str) -> None:
        """Keep what a case wants kept, and its reply; the last token was never forwarded."""
        for kept in case.kept:
            self.put(_name(case, kept.source, lane), request_id, kept.start, kept.end)
        end = len(case.prompt) + num_reply - 1
        if end > len(case.prompt):
            self.put(_name(case, reply_source(case.step), lane), request_id, len(case.prompt), end)

    def finder(self, case: Case, *lanes: str) -> Callable[[Message], Resident]:
        """Finds a case's messages in these lanes, the first one first, and among the authors'."""

        def find(message: Message) -> Resident:
            names = [*(_name(case, message.source, lane) for lane in lanes), author_id(case, message.source)]
            return next(self._residents[name] for name in names if name in self._residents)

        return find


def _name(case: Case, source: str, lane: str) -> str:
    return f"{case.item_id}|{lane}|{source}"
