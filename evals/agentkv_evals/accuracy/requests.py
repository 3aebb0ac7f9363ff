"""What the engine is asked for a case: its authors, full prefill, and the reader under a rule.

Request ids are tenants too: no request reads what another left, but for the residents it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import Resident
from agentkv_evals.accuracy.arms import Arm
from agentkv_evals.accuracy.cases import Case
from agentkv_evals.training.encode import END_ID

_SLACK = 16
"""Tokens that a wrong reply may be longer than the right one."""


def author_requests(case: Case) -> Iterator[Request]:
    """Each author's own prompt with its message: full prefill, as if it had just written it."""
    for index, message in enumerate(case.authored):
        name = _author(case, index)
        yield Request(
            request_id=name,
            token_ids=(*message.context, *message.content),
            sampling=SamplingParams(max_tokens=1),
            mode=ReuseMode.OFF,
            tenant=name,
        )


def full_request(case: Case) -> Request:
    """The reader with full prefill, decoding greedily."""
    return Request(
        request_id=case.case_id,
        token_ids=case.prompt,
        sampling=SamplingParams(max_tokens=len(case.right) + _SLACK, stop_token_ids=frozenset({END_ID})),
        mode=ReuseMode.OFF,
        tenant=case.case_id,
        return_logits=True,
    )


def screened_request(
    case: Case, arm: Arm, residents: Mapping[str, Resident], reply: tuple[int, ...], purpose: str = ""
) -> Request:
    """The reader under a rule, its messages read from `residents`, a reply forced."""
    name = reader_id(case, arm, purpose)
    authored = [residents[_author(case, index)] for index in range(len(case.authored))]
    passed_on = [residents[reply_id(case, arm, case.hop - 1)]] if case.hop > 1 else []
    return Request(
        request_id=name,
        token_ids=case.prompt,
        mode=ReuseMode.SCREENED,
        tenant=name,
        spans=tuple(
            message.span(resident) for message, resident in zip(case.messages, [*authored, *passed_on], strict=True)
        ),
        selector=arm.selector,
        forced_output=reply,
        return_logits=True,
    )


def reader_id(case: Case, arm: Arm, purpose: str = "") -> str:
    """Names the request of an arm."""
    return f"{case.case_id}|{purpose}{arm.name}"


def reply_id(case: Case, arm: Arm, hop: int) -> str:
    """Names the kept reply of an arm at a hop."""
    return f"{case.item_id}|{arm.name}|reply {hop}"


def _author(case: Case, index: int) -> str:
    return f"{case.item_id}|author {index}"
