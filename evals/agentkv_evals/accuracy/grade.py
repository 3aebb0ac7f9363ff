"""Items under every arm, on one engine: authors once, then full prefill, then each rule on the same kept KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from agentkv.errors import ConfigError
from agentkv_engine.errors import UnknownHandle
from agentkv_engine.reuse import Resident
from agentkv_evals.accuracy.arms import FULL, Arm
from agentkv_evals.accuracy.cases import Case
from agentkv_evals.accuracy.drive import Driver, Reply
from agentkv_evals.accuracy.requests import author_requests, full_request, reader_id, reply_id, screened_request
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.comparison.fidelity import Fidelity, compare


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

    def grade(self, asks: Sequence[Ask], hops: int = 1) -> list[Row]:
        """Rows of full prefill and of every arm asked for, at each hop.

        Full prefill's reply is forced upon every arm and passed on to the next hop: the same tokens for all, with the
        KV that each arm's own repairs gave them.

        Raises:
            ConfigError: the pool is too small for what is kept meanwhile.
        """
        residents: dict[str, Resident] = {}
        rows: list[Row] = []
        try:
            self._write(asks, residents)
            for hop in range(1, hops + 1):
                full = self._driver.run(full_request(ask.case) for ask in asks)
                rows += self._hop(asks, full, residents, is_last=hop == hops)
                replies = [full[ask.case.case_id].token_ids for ask in asks]
                # A reply of an end token only leaves nothing to pass on.
                asks = [
                    replace(ask, case=ask.case.passed_on(reply))
                    for ask, reply in zip(asks, replies, strict=True)
                    if len(reply) > 1
                ]
        finally:
            for resident in residents.values():
                with suppress(UnknownHandle):  # evicted; the reply that missed it says so
                    self._driver.engine.release(resident.handle)
        return rows

    def _write(self, asks: Sequence[Ask], residents: dict[str, Resident]) -> None:
        """Let every author read its own context, and keep its message."""
        authored = {
            request.request_id: (request, len(message.content))
            for ask in asks
            for request, message in zip(author_requests(ask.case), ask.case.authored, strict=True)
        }

        def keep(request_id: str) -> None:
            request, length = authored[request_id]
            end = len(request.token_ids)
            residents[request_id] = self._driver.engine.keep(request_id, end - length, end)

        self._driver.run((request for request, _ in authored.values()), keep)

    def _hop(
        self, asks: Sequence[Ask], full: Mapping[str, Reply], residents: dict[str, Resident], *, is_last: bool
    ) -> list[Row]:
        pairs = {reader_id(ask.case, arm): (ask.case, arm) for ask in asks for arm in ask.arms}

        def keep(request_id: str) -> None:
            case, arm = pairs[request_id]
            start, length = len(case.prompt), len(full[case.case_id].token_ids) - 1
            if not is_last and length > 0:
                residents[reply_id(case, arm, case.hop)] = self._driver.engine.keep(request_id, start, start + length)

        forced = self._driver.run(
            (screened_request(case, arm, residents, full[case.case_id].token_ids) for case, arm in pairs.values()), keep
        )
        # Where full prefill is wrong, another reply may be right: see what each arm says to the right one.
        right = self._driver.run(
            screened_request(case, arm, residents, case.right, "right/")
            for case, arm in pairs.values()
            if full[case.case_id].token_ids != case.right
        )
        return [row for ask in asks for row in self._rows(ask, full[ask.case.case_id], forced, right)]

    def _rows(self, ask: Ask, full: Reply, forced: Mapping[str, Reply], right: Mapping[str, Reply]) -> Iterator[Row]:
        is_right = full.token_ids == ask.case.right
        same = Fidelity(positions=len(full.token_ids))
        yield self._row(ask.case, FULL, full, same, exact=True, right=is_right, same_choice=True)
        chosen = self._num_until_choice(full.token_ids)
        for arm in ask.arms:
            reply = forced[reader_id(ask.case, arm)]
            _check(reply)
            said = _best(reply)
            exact = said == full.token_ids
            yield self._row(
                ask.case,
                arm.name,
                reply,
                compare(full.chunks, reply.chunks),
                exact=exact,
                right=exact if is_right else _best(right[reader_id(ask.case, arm, "right/")]) == ask.case.right,
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
            hop=case.hop,
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
            messages=len(case.messages),
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
