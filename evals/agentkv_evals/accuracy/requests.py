"""What the engine is asked for a case: its authors, full prefill, and the reader under an arm.

Request ids are tenants too: no request reads what another left, but for the residents it names. The arm that reads
exact prefixes has one tenant an item: there, a prompt finds those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agentkv.segment.unread import with_unread
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import PlacedSpan, Resident
from agentkv_evals.accuracy.arms import FULL, Arm
from agentkv_evals.accuracy.cases import Case, Message
from agentkv_evals.accuracy.oracle import Foresight

Find = Callable[[Message], Resident]
"""Gives the resident of a message, in the arm that asks."""


def author_requests(case: Case) -> Iterator[Request]:
    """Each author's own prompt with its message: full prefill, as if it had just written it."""
    for author in case.authors:
        name = author_id(case, author.source)
        yield Request(
            request_id=name,
            token_ids=(*author.context, *author.content),
            sampling=SamplingParams(max_tokens=1),
            mode=ReuseMode.OFF,
            tenant=name,
        )


def full_request(case: Case) -> Request:
    """The reader with full prefill: it decodes greedily, unless the reply is known."""
    name = reader_id(case, FULL)
    return Request(
        request_id=name,
        token_ids=case.prompt,
        sampling=_greedy(case),
        mode=ReuseMode.OFF,
        tenant=name,
        forced_output=case.reply,
        return_logits=True,
    )


def foresight_request(case: Case, find: Find, foresight: Foresight, reply: tuple[int, ...], name: str) -> Request:
    """Full prefill of prompt and reply beside the kept KV, for `foresight` to look at."""
    return Request(
        request_id=name,
        token_ids=(*case.prompt, *reply[:-1]),
        sampling=SamplingParams(max_tokens=1),
        mode=ReuseMode.SCREENED,
        tenant=name,
        spans=_spans(case, find),
        selector=foresight,
    )


def arm_request(case: Case, arm: Arm, find: Find, reply: tuple[int, ...] | None, purpose: str = "") -> Request:
    """The reader under an arm, its messages read where the arm has them; a reply is forced, or it decodes its own."""
    name = reader_id(case, arm.name, purpose)
    screened = arm.selector is not None
    return Request(
        request_id=name,
        token_ids=case.prompt,
        sampling=_greedy(case),
        mode=ReuseMode.SCREENED if screened else ReuseMode.EXACT,
        tenant=name if screened else f"{case.item_id}|{purpose}{arm.name}",
        spans=_spans(case, find) if screened else (),
        selector=arm.selector,
        forced_output=reply,
        return_logits=reply is not None,
    )


def reader_id(case: Case, arm: str, purpose: str = "") -> str:
    """Names the request of an arm."""
    return f"{case.case_id}|{purpose}{arm}"


def author_id(case: Case, source: str) -> str:
    """Names an author's request and its kept message."""
    return f"{case.item_id}|{source}"


def _greedy(case: Case) -> SamplingParams:
    return SamplingParams(max_tokens=case.max_tokens, stop_token_ids=case.stop_ids)


def _spans(case: Case, find: Find) -> tuple[PlacedSpan, ...]:
    return with_unread([message.span(find(message)) for message in case.messages])
