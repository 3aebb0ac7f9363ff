"""Items under every arm, on one engine: authors once, then full prefill, then each arm on the same kept KV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentkv_engine.request import Request
from agentkv_evals.accuracy.arms import FULL, Arm
from agentkv_evals.accuracy.cases import Case
from agentkv_evals.accuracy.drive import Driver, Reply
from agentkv_evals.accuracy.oracle import Foresight, Informed, Oracle
from agentkv_evals.accuracy.play import Ask, Played, Told, Way, check, told_of
from agentkv_evals.accuracy.requests import (
    Find,
    arm_request,
    author_requests,
    foresight_request,
    full_request,
    reader_id,
)
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.shelf import Shelf
from agentkv_evals.accuracy.tasks.task import Task
from agentkv_evals.comparison.fidelity import Fidelity, compare


class Grader:
    """Grades items; arms share the authors' KV and nothing else.

    Args:
        driver: its engine is used by nobody else.
        task: whose items.
        run: see `Row.run`.
    """

    def __init__(self, driver: Driver, task: Task, *, run: dict[str, Any]) -> None:
        self._driver = driver
        self._task = task
        self._run = run
        self._layers = driver.engine.model_config.num_layers

    def grade(self, asks: Sequence[Ask]) -> list[Row]:
        """Rows of full prefill and of every arm asked for, at each step.

        Full prefill's reply is forced upon every arm and passed on to the next step: the same tokens for all, with the
        KV that each arm's own repairs gave them. Where the task grades own replies, each arm then also goes its way.

        Raises:
            ConfigError: the pool is too small for what is kept meanwhile.
        """
        plays = [Played(ask=ask, case=self._task.case(ask.cell, ask.seed)) for ask in asks]
        with Shelf(self._driver.engine) as shelf:
            while asked := [(play, play.case) for play in plays if play.case is not None]:
                self._step(asked, shelf)
            if self._task.generates:
                self._go_own_ways(plays, shelf)
        return [row for play in plays for row in self._rows(play)]

    def _step(self, asked: Sequence[tuple[Played, Case]], shelf: Shelf) -> None:
        """One prompt of each item under all arms."""
        self._write((case for _, case in asked), shelf)
        full = self._driver.run(full_request(case) for _, case in asked)
        known = {case.case_id: full[reader_id(case, FULL)] for _, case in asked}
        forced = [(case, arm, known[case.case_id].token_ids) for play, case in asked for arm in play.ask.arms]
        told = self._force(forced, known, shelf)
        wrong = [] if self._task.generates else [each for each in forced if each[0].right not in (None, each[2])]
        right = self._force([(case, arm, case.right or ()) for case, arm, _ in wrong], {}, shelf, "right/")
        for play, case in asked:
            reply = known[case.case_id]
            play.cases.append(case)
            play.replies.append(reply.token_ids)
            play.full.append(told_of(reply, Fidelity(positions=len(reply.token_ids))))
            for steps, answers in ((play.told, told), (play.right, right)):
                steps.append({arm: each for (case_id, arm), each in answers.items() if case_id == case.case_id})
            play.own.append({})
            play.case = self._task.case(case.cell, case.seed, tuple(play.replies))

    def _write(self, cases: Iterable[Case], shelf: Shelf) -> None:
        """Let every author read its own context, and keep its message."""
        requests = {}
        lengths = {}
        for case in cases:
            for author, request in zip(case.authors, author_requests(case), strict=True):
                if request.request_id not in shelf:
                    requests[request.request_id] = request
                    lengths[request.request_id] = len(author.content)

        def keep(request_id: str, _reply: Reply) -> None:
            end = len(requests[request_id].token_ids)
            shelf.put(request_id, request_id, end - lengths[request_id], end)

        self._driver.run(requests.values(), keep)

    def _force(
        self,
        wanted: Sequence[tuple[Case, Arm, tuple[int, ...]]],
        known: dict[str, Reply],
        shelf: Shelf,
        purpose: str = "",
    ) -> dict[tuple[str, str], Told]:
        """Each arm behind a reply: where full prefill's is `known`, compared with it, its KV kept for later readers."""
        asked = {reader_id(case, arm.name, purpose): (case, arm) for case, arm, _ in wanted}
        told: dict[tuple[str, str], Told] = {}

        def take(request_id: str, reply: Reply) -> None:
            case, arm = asked[request_id]
            full = known.get(case.case_id)
            told[case.case_id, arm.name] = told_of(reply, compare(full.chunks, reply.chunks) if full else Fidelity())
            if full is not None:
                shelf.keep_step(request_id, case, len(reply.token_ids), lane=arm.name)

        finds = [(case, arm, reply, shelf.finder(case, arm.name)) for case, arm, reply in wanted]
        informed = self._inform(finds, purpose)
        self._driver.run(
            (
                arm_request(case, arm, find, reply, purpose)
                for arm, (case, _, reply, find) in zip(informed, finds, strict=True)
            ),
            take,
        )
        return told

    def _inform(self, wanted: Sequence[tuple[Case, Arm, tuple[int, ...], Find]], purpose: str) -> list[Arm]:
        """The arms; the oracles among them have been told what full prefill does to their rows and reads of them."""
        looks: dict[str, tuple[Foresight, Request]] = {}
        for case, arm, reply, find in wanted:
            if isinstance(arm.selector, Oracle):
                name = reader_id(case, arm.name, f"{purpose}foresight/")
                foresight = Foresight(num_prompt=len(case.prompt))
                looks[name] = foresight, foresight_request(case, find, foresight, reply, name)
        self._driver.run(request for _, request in looks.values())

        def told(arm: Arm, case: Case) -> Arm:
            if not isinstance(arm.selector, Oracle):
                return arm
            foresight, _ = looks[reader_id(case, arm.name, f"{purpose}foresight/")]
            return replace(arm, selector=Informed(rule=arm.selector, scores=tuple(foresight.scores)))

        return [told(arm, case) for case, arm, _, _ in wanted]

    def _go_own_ways(self, plays: Sequence[Played], shelf: Shelf) -> None:
        """Let each arm decode from the first step on at which its best tokens are not full prefill's reply."""
        ways = [
            Way(play=play, arm=arm, replies=play.replies[:first])
            for play in plays
            for arm in play.ask.arms
            if (first := play.first_difference(arm.name)) is not None
        ]
        while asked := [(way, case) for way in ways if (case := self._next(way)) is not None]:
            self._write((case for _, case in asked), shelf)
            self._decode({reader_id(case, way.arm.name, "own/"): (way, case) for way, case in asked}, shelf)

    def _next(self, way: Way) -> Case | None:
        return self._task.case(way.play.ask.cell, way.play.ask.seed, tuple(way.replies))

    def _decode(self, asked: Mapping[str, tuple[Way, Case]], shelf: Shelf) -> None:
        def take(request_id: str, reply: Reply) -> None:
            check(reply)
            way, case = asked[request_id]
            way.play.own[len(way.replies)][way.arm.name] = reply.token_ids
            way.replies.append(reply.token_ids)
            shelf.keep_step(request_id, case, len(reply.token_ids), lane=f"{way.arm.name}|own")

        # An oracle knows what full prefill's agent said here, which may be an answer to another prompt.
        finds = [
            (case, way.arm, way.play.replies[len(way.replies)], shelf.finder(case, f"{way.arm.name}|own", way.arm.name))
            for way, case in asked.values()
        ]
        informed = self._inform(finds, "own/")
        self._driver.run(
            (
                arm_request(case, arm, find, case.reply, "own/")
                for arm, (case, _, _, find) in zip(informed, finds, strict=True)
            ),
            take,
        )

    def _rows(self, play: Played) -> Iterator[Row]:
        steps = len(play.cases)
        for index, (case, reply) in enumerate(zip(play.cases, play.replies, strict=True)):
            right = self._task.is_right(case, reply)
            same = self._task.same_choice(case, reply, reply)
            yield self._row(case, FULL, play.full[index], steps, exact=True, right=right, same_choice=same)
            for arm, told in play.told[index].items():
                exact = told.best == play.full[index].best
                said = play.own[index].get(arm, reply) if self._task.generates else told.best
                behind = play.right[index].get(arm)
                yield self._row(
                    case,
                    arm,
                    told,
                    steps,
                    exact=exact,
                    right=behind.best == case.right if behind else self._task.is_right(case, said),
                    same_choice=self._task.same_choice(case, reply, said),
                )

    def _row(
        self,
        case: Case,
        arm: str,
        told: Told,
        steps: int,
        *,
        exact: bool,
        right: bool | None,
        same_choice: bool | None,
    ) -> Row:
        sources = told.sources
        return Row(
            item=case.item_id,
            family=case.part,
            depth=case.cell.depth,
            topology=case.cell.topology,
            question=case.cell.question,
            seed=case.seed,
            step=case.step,
            steps=steps,
            hop=case.hop,
            arm=arm,
            right=right,
            exact=exact,
            positions=told.fidelity.positions,
            mismatched=told.fidelity.mismatched,
            ties=told.fidelity.ties,
            kl_sum=told.fidelity.kl_sum,
            same_choice=same_choice,
            prompt=sources.prompt,
            prefix=sources.prefix,
            reused=case.num_reused,
            messages=len(case.messages),
            layers=self._layers,
            probe=sources.probe_row_layers,
            repair=sources.repair_row_layers,
            screening=sources.screening_row_layers,
            fresh=sources.fresh_row_layers,
            left=sources.left,
            seconds=told.seconds,
            fallbacks=dict(sources.fallbacks),
            run=self._run,
        )
