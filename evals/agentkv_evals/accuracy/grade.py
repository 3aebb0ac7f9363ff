"""Items under every arm, on one engine: authors once, then full prefill, then each rule on the same kept KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentkv.errors import ConfigError
from agentkv_engine.errors import UnknownHandle
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import PlacedSpan
from agentkv_evals.accuracy.arms import FULL, Arm
from agentkv_evals.accuracy.cases import Case
from agentkv_evals.accuracy.drive import Driver, Reply
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.comparison.fidelity import Fidelity, compare
from agentkv_evals.training.encode import END_ID

_SLACK = 16
"""Tokens that a wrong reply may be longer than the right one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A case, and the arms that have not answered it yet."""

    case: Case
    arms: tuple[Arm, ...]


class Grader:
    """Grades cases; arms share the authors' KV and nothing else.

    Args:
        driver: its engine is used by nobody else.
        digits: token ids of digits: a judge's reply names the candidate by its number.
        run: see `Row.run`.
    """

    def __init__(self, driver: Driver, *, digits: frozenset[int], run: dict[str, Any]) -> None:
        self._driver = driver
        self._digits = digits
        self._run = run
        self._layers = driver.engine.model_config.num_layers

    def grade(self, asks: Sequence[Ask]) -> list[Row]:
        """Rows of full prefill and of every arm asked for.

        Raises:
            ConfigError: the pool is too small for what is kept meanwhile.
        """
        handles = self._write(asks)
        try:
            full = self._driver.run(_full(ask.case) for ask in asks)
            spans = {ask.case.case_id: _placed(ask.case, handles) for ask in asks}
            forced = self._driver.run(
                _screened(ask.case, arm, spans[ask.case.case_id], full[ask.case.case_id].token_ids)
                for ask in asks
                for arm in ask.arms
            )
            # Where full prefill is wrong, another reply may be right: see what each arm says to the right one.
            right = self._driver.run(
                _screened(ask.case, arm, spans[ask.case.case_id], ask.case.right, "right/")
                for ask in asks
                if full[ask.case.case_id].token_ids != ask.case.right
                for arm in ask.arms
            )
        finally:
            for handle in handles.values():
                with suppress(UnknownHandle):  # evicted; the reply that missed it says so
                    self._driver.engine.release(handle)
        rows: list[Row] = []
        for ask in asks:
            rows += self._rows(ask, full[ask.case.case_id], forced, right)
        return rows

    def _write(self, asks: Sequence[Ask]) -> dict[str, int]:
        """Let every author read its own context and keep its message; handles by request id."""
        lengths: dict[str, tuple[int, int]] = {}
        requests: list[Request] = []
        for ask in asks:
            for index, message in enumerate(ask.case.messages):
                request_id = _author(ask.case, index)
                start = len(message.context)
                lengths[request_id] = (start, start + len(message.content))
                requests.append(
                    Request(
                        request_id=request_id,
                        token_ids=(*message.context, *message.content),
                        sampling=SamplingParams(max_tokens=1),
                        mode=ReuseMode.OFF,
                        tenant=request_id,
                    )
                )
        handles: dict[str, int] = {}

        def keep(request_id: str) -> None:
            handles[request_id] = self._driver.engine.keep(request_id, *lengths[request_id]).handle

        self._driver.run(requests, keep)
        return handles

    def _rows(self, ask: Ask, full: Reply, forced: Mapping[str, Reply], right: Mapping[str, Reply]) -> Iterator[Row]:
        is_right = full.token_ids == ask.case.right
        same = Fidelity(positions=len(full.token_ids))
        yield self._row(ask.case, FULL, full, same, exact=True, right=is_right, same_choice=True)
        chosen = self._num_until_choice(full.token_ids)
        for arm in ask.arms:
            reply = forced[_reader(ask.case, arm)]
            _check(reply)
            said = _best(reply)
            exact = said == full.token_ids
            yield self._row(
                ask.case,
                arm.name,
                reply,
                compare(full.chunks, reply.chunks),
                exact=exact,
                right=exact if is_right else _best(right[_reader(ask.case, arm, "right/")]) == ask.case.right,
                same_choice=said[:chosen] == full.token_ids[:chosen],
            )

    def _row(
        self, case: Case, arm: str, reply: Reply, fidelity: Fidelity, *, exact: bool, right: bool, same_choice: bool
    ) -> Row:
        sources = reply.sources
        assert sources is not None, "a reply that has ended has said where its prompt came from"
        return Row(
            family=case.cell.family,
            depth=case.cell.depth,
            topology=case.cell.topology,
            question=case.cell.question,
            seed=case.seed,
            arm=arm,
            right=right,
            exact=exact,
            positions=fidelity.positions,
            mismatched=fidelity.mismatched,
            ties=fidelity.ties,
            kl_sum=fidelity.kl_sum,
            same_choice=same_choice if case.cell.family == "judge" else None,
            prompt=sources.prompt,
            reused=sum(len(message.content) for message in case.messages),
            layers=self._layers,
            probe=sources.probe_row_layers,
            repair=sources.repair_row_layers,
            screening=sources.screening_row_layers,
            fresh=sources.fresh_row_layers,
            seconds=reply.seconds,
            fallbacks=dict(sources.fallbacks),
            run=self._run,
        )

    def _num_until_choice(self, reply: Sequence[int]) -> int:
        """How much of a judge's reply it takes to know the candidate: up to its last digit; all where there is none."""
        return max((n + 1 for n, token in enumerate(reply) if token in self._digits), default=len(reply))


def _full(case: Case) -> Request:
    return Request(
        request_id=case.case_id,
        token_ids=case.prompt,
        sampling=SamplingParams(max_tokens=len(case.right) + _SLACK, stop_token_ids=frozenset({END_ID})),
        mode=ReuseMode.OFF,
        tenant=case.case_id,
        return_logits=True,
    )


def _screened(
    case: Case, arm: Arm, spans: tuple[PlacedSpan, ...], reply: tuple[int, ...], purpose: str = ""
) -> Request:
    """A tenant of its own for each request: no arm reads what another left, nor what it left itself."""
    request_id = _reader(case, arm, purpose)
    return Request(
        request_id=request_id,
        token_ids=case.prompt,
        mode=ReuseMode.SCREENED,
        tenant=request_id,
        spans=spans,
        selector=arm.selector,
        forced_output=reply,
        return_logits=True,
    )


def _placed(case: Case, handles: Mapping[str, int]) -> tuple[PlacedSpan, ...]:
    return tuple(message.span(handles[_author(case, index)]) for index, message in enumerate(case.messages))


def _author(case: Case, index: int) -> str:
    return f"{case.case_id}|author {index}"


def _reader(case: Case, arm: Arm, purpose: str = "") -> str:
    return f"{case.case_id}|{purpose}{arm.name}"


def _best(reply: Reply) -> tuple[int, ...]:
    """The best token at each position of the forced reply; equal to it exactly where greedy decoding gives it."""
    return tuple(reply.logits.argmax(dim=-1).tolist())


def _check(reply: Reply) -> None:
    assert reply.sources is not None
    lost = {reason for reason, _ in reply.sources.fallbacks} & {"segment_gone", "no_room"}
    if lost:
        raise ConfigError(
            f"kept KV was evicted ({', '.join(sorted(lost))}): raise --kv-memory, or lower --batch, which sets how "
            "many items are kept at once"
        )
