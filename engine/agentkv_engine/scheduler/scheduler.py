"""Who runs in the next step, with which rows; who gives way when the pool is full; what the results mean."""

import time
from collections.abc import Sequence as Ordered
from dataclasses import replace

import numpy as np
import torch

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.key_table import NO_SLOT
from agentkv_engine.cache.levels import Levels
from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.errors import ConstraintFailed, EngineError, RequestRefused, SelectorFailed
from agentkv_engine.memory_errors import is_out_of_memory, out_of_memory
from agentkv_engine.request import FinishReason, ReuseMode, StepOutput, TokenSources
from agentkv_engine.reuse import Amendment, Draft
from agentkv_engine.sampling.result import Sampled, TokenLogprobs
from agentkv_engine.sampling.sampler import MOST_SCORED_ROWS, Sample, sample, score
from agentkv_engine.scheduler.admission import Admission
from agentkv_engine.scheduler.budget import BudgetPolicy, Load, Spending, StepBudget
from agentkv_engine.scheduler.decodes_ahead import all_go_on, expected_decodes
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput, SeqResult
from agentkv_engine.scheduler.sequence import NO_ROWS, Phase, Rows, Sequence

_KIND_OF_PHASE = {Phase.DRAFTING: "probe", Phase.AMENDING: "repair"}
"""Work of rows that run for a phase, as it is counted."""


class Scheduler:
    """Continuous batching: rows of all running sequences share one budget, decodes first, oldest first.

    A running sequence that finds no block takes those of the youngest one that has nothing in this step yet (preemption
    by recomputation), and nobody is admitted while one is waiting for blocks: the oldest always gets on.

    Several steps may be under way; they run, and their results come, in order. Chunks of a prompt may follow each
    other; a sequence that is continued has one row under way, since nobody knows the next. What is under way is not
    preempted. When a sequence is given up its slots go to others at once: their rows are written later.
    """

    def __init__(
        self,
        pool: BlockPool,
        admission: Admission,
        levels: Levels,
        budget: BudgetPolicy,
        *,
        max_sequences: int,
        limit: int,
    ) -> None:
        self._pool = pool
        self._admission = admission
        self._levels = levels
        self._budget = budget
        self._max_sequences = max_sequences
        self._limit = limit
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._finished: list[Sequence] = []
        self._failed: list[StepOutput] = []
        self._unindexed: dict[Sequence, int] = {}
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running or self._failed)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; first come, first admitted."""
        self._waiting.append(seq)

    def use_budget(self, budget: BudgetPolicy) -> None:
        """Limit steps by another policy from now on."""
        self._budget = budget

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of a request: waiting, running, or finished in the last step."""
        everyone = (*self._waiting, *self._running, *self._finished)
        return next((seq for seq in everyone if seq.request_id == request_id), None)

    def abort(self, seq: Sequence) -> None:
        """Forget a sequence and give back what it holds."""
        self._index()
        for group in (self._waiting, self._running, self._finished):
            if seq in group:
                group.remove(seq)
        if seq.residence is not None:
            self._admission.release(seq)
        seq.phase = Phase.FINISHED

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence; a running one holds its keys until the next step, so that they can be kept."""
        if seq.phase is Phase.FINISHED:
            return
        if seq.num_drafted:
            seq.drop_uncounted()
        if seq.residence is None:
            self._waiting.remove(seq)
        else:
            self._running.remove(seq)
            self._finished.append(seq)
            if seq.num_computed >= seq.num_prompt:
                self._unindexed[seq] = seq.num_computed
        seq.phase, seq.finish_reason = Phase.FINISHED, reason

    def release_finished(self) -> None:
        """What the last step left to do once its tokens were out: put prompts into the prefix index, and give back what
        the sequences that ended hold."""
        self._index()
        while self._finished:
            self._admission.release(self._finished.pop())

    def schedule(self) -> SchedulerOutput:
        """Choose the rows of the next step and give each a slot."""
        self.release_finished()
        chosen = self._choose(self._budget.budget(self._load))
        if not chosen and self._running and not any(seq.num_under_way for seq in self._running):
            # Decodes lack blocks that prompts hold, and the budget keeps prompts waiting for decodes.
            chosen = self._choose(self._budget.budget(lambda: replace(self._load(), num_decoding=0)))
        return SchedulerOutput(scheduled=tuple(chosen.values()))

    def update(self, schedule: SchedulerOutput, results: Ordered[SeqResult]) -> list[StepOutput]:
        """Take in what a step computed, a result for each scheduled sequence."""
        outputs = self.take_failed()
        try:
            for item, result in zip(schedule.scheduled, results, strict=True):
                output = self._advance(item, result)
                if output is not None:
                    outputs.append(output)
        except Exception:  # what is there goes out with what is lost
            self._failed = outputs
            raise
        return outputs

    def _choose(self, budget: StepBudget) -> dict[Sequence, ScheduledSeq]:
        left = Spending(budget, self._levels.num_layers)
        chosen: dict[Sequence, ScheduledSeq] = {}
        stalled = False
        for seq in sorted(self._running, key=lambda s: (len(s.queue) > 1, s.arrival)):
            if seq.phase is not Phase.WAITING and (num_rows := left.most(seq.queue, decodes=seq.decodes)):
                self._schedule_rows(seq, num_rows, left, chosen)
                stalled |= seq not in chosen
        while not (left.is_spent or stalled) and self._waiting and len(self._running) < self._max_sequences:
            seq = self._next_waiting()
            if seq is None or not self._admit(seq):
                break
            if num_rows := left.most(seq.queue, decodes=False):
                self._schedule_rows(seq, num_rows, left, chosen)
            stalled = seq not in chosen
        return chosen

    def expect(self, schedule: SchedulerOutput) -> SchedulerOutput | None:
        """The step that comes after the one under way if all of it decodes, goes on, and nobody comes. Its rows have
        slots, and are not begun."""
        if self._has_other_work or len(schedule.scheduled) < len(self._running):
            return None
        return expected_decodes(schedule, depth=self._levels.num_layers, assign_slot=self._assign_slot)

    def take_up(self, expected: SchedulerOutput) -> bool:
        """Whether an expected step is what `schedule` would give now; then its rows are under way."""
        if self._has_other_work or not all_go_on(expected, self._running):
            return False
        for seq in self._running:
            seq.queue = NO_ROWS
            seq.num_under_way += 1
        return True

    @property
    def _has_other_work(self) -> bool:
        return bool(self._waiting or self._finished or self._failed or self._unindexed)

    def take_failed(self) -> list[StepOutput]:
        """What ended without a step."""
        failed, self._failed = self._failed, []
        return failed

    def fail_begun(self, error: EngineError) -> None:
        """All KV is gone: sequences that had begun end with an error; those that never ran go on waiting."""
        self.release_finished()
        begun = [*self._running, *(seq for seq in self._waiting if seq.admitted_at is not None)]
        for seq in begun:
            self.abort(seq)
            self._failed.append(StepOutput(request_id=seq.request_id, error=error))

    def _index(self) -> None:
        for seq, num_tokens in self._unindexed.items():
            self._admission.index(seq, num_tokens=num_tokens)
        self._unindexed.clear()

    def _load(self) -> Load:
        num_layers = self._levels.num_layers
        waiting = sum(len(seq.token_ids) - sum(span.num_tokens for span in seq.spans) for seq in self._waiting)
        prefill = sum(int(seq.queue.depths.sum()) for seq in self._running if not seq.decodes)
        return Load(
            num_layers=num_layers,
            num_decoding=sum(seq.decodes for seq in self._running),
            prefill_row_layers=waiting * num_layers + prefill,
            num_blocks=self._pool.num_blocks,
            num_free=self._pool.num_unpinned,
        )

    def _next_waiting(self) -> Sequence | None:
        """The oldest one whose prompt nobody is computing: of requests with the same prompt that come at once (as `n`
        choices do), one computes it, and the others then read it."""
        under_way = {seq.prompt_key for seq in self._running if seq.num_emitted == 0 and seq.prompt_key is not None}
        return next((seq for seq in self._waiting if seq.prompt_key not in under_way or seq.num_emitted), None)

    def _admit(self, seq: Sequence) -> bool:
        taken_up = time.perf_counter()
        try:
            admitted = self._admission.admit(seq)
        except Exception as error:
            if (failure := _own_failure(error)) is None:
                raise
            self._waiting.remove(seq)
            self._failed.append(StepOutput(request_id=seq.request_id, error=failure))
            return False
        if not admitted:
            if self._running or not self._retry_alone(seq):
                return False
            return self._admit(seq)
        self._waiting.remove(seq)
        self._running.append(seq)
        seq.admitted_at = seq.admitted_at or taken_up
        return True

    def _schedule_rows(
        self, seq: Sequence, num_rows: int, left: Spending, chosen: dict[Sequence, ScheduledSeq]
    ) -> None:
        """Schedule the next rows of a sequence, making room if need be; none where there is no room now."""
        rows = seq.queue[: self._most_rows(seq, num_rows, chosen)]
        while not self._assign_slots(seq, rows):
            younger = [s for s in self._running if s.arrival > seq.arrival and s not in chosen and not s.num_under_way]
            if younger:
                self._preempt(max(younger, key=lambda s: s.arrival))
            elif len(self._running) > 1 or seq.num_under_way:
                return  # those under way will end and give back what they hold
            elif len(rows) > BLOCK_SIZE:
                rows = rows[: len(rows) // 2]
            else:
                self._preempt(seq)
                self._retry_alone(seq)
                return
        left.spend(rows, decodes=seq.decodes)
        seq.queue = seq.queue[len(rows) :]
        seq.num_under_way += 1
        chosen[seq] = self._scheduled(seq, rows)

    def _most_rows(self, seq: Sequence, left: int, chosen: dict[Sequence, ScheduledSeq]) -> int:
        """Few rows where a prompt is scored: the logits of all of them are wanted."""
        if not seq.scores_prompt:
            return left
        taken = sum(item.num_scored for item in chosen.values())
        return min(left, max(1, MOST_SCORED_ROWS - taken))

    def _retry_alone(self, seq: Sequence) -> bool:
        """Nothing else runs and there still is no room: give up reuse, then the request. False when it was given up."""
        if not seq.reuse_given_up and seq.request.mode is not ReuseMode.OFF:
            seq.reuse_given_up, seq.spans, seq.plan = True, (), None
            seq.fallbacks["no_room"] += 1
            return True
        self._waiting.remove(seq)
        if seq.num_emitted:
            self._failed.append(StepOutput(request_id=seq.request_id, finish_reason=FinishReason.LENGTH))
        else:
            error = RequestRefused(
                f"the prompt's {seq.num_prompt} tokens do not fit beside {self._pool.num_kept} kept blocks of "
                f"{self._pool.num_blocks}: unpin segments or raise kv_memory"
            )
            self._failed.append(StepOutput(request_id=seq.request_id, error=error))
        return False

    def _preempt(self, seq: Sequence) -> None:
        self.num_preemptions += 1
        self._admission.release(seq)
        if seq.states is not None:
            seq.states.reset()
        seq.phase = Phase.WAITING
        self._running.remove(seq)
        self._waiting.append(seq)
        self._waiting.sort(key=lambda s: s.arrival)

    def _assign_slots(self, seq: Sequence, rows: Rows) -> bool:
        """Give every row the slot it writes: a private one, or scratch for a probe's row on reused keys."""
        residence = seq.held
        if len(rows) == 1 and residence.probe is None and rows.depths[0] == self._levels.num_layers:
            return self._assign_slot(seq, int(rows.positions[0]))
        own = residence.own_slots(rows.positions)
        missing = rows.positions[own == NO_SLOT]
        borrowed = np.zeros(len(missing), dtype=bool)
        if residence.probe is not None:
            borrowed = np.isin(missing, residence.probe.borrowed_N)
            scratch = residence.probe.scratch.take(int(borrowed.sum()))
            if scratch is None:
                return False
            residence.own_P[missing[borrowed]] = scratch
        slots = residence.private.take(int((~borrowed).sum()))
        if slots is None:
            return False
        residence.own_P[missing[~borrowed]] = slots
        num_lists = self._levels.num_lists(rows.depths)
        residence.table.write(rows.positions, num_lists, residence.own_P[rows.positions])
        return True

    def _assign_slot(self, seq: Sequence, position: int) -> bool:
        """Give one row of full depth the slot it writes."""
        residence = seq.held
        residence.make_room(position + 1)
        slot = residence.own_P[position]
        if slot == NO_SLOT:
            taken = residence.private.take(1)
            if taken is None:
                return False
            slot = residence.own_P[position] = taken[0]
        residence.table.write_one(position, slot)
        return True

    def _scheduled(self, seq: Sequence, rows: Rows) -> ScheduledSeq:
        num_logits, samples, num_scored = self._wanted(seq, rows)
        left = seq.queue
        may_observe = seq.held.probe is not None or seq.held.watch is not None
        record = self._admission.record(seq, rows) if may_observe and rows.observed.any() else None
        return ScheduledSeq(
            sequence=seq,
            rows=rows,
            num_logits=num_logits,
            samples=samples,
            num_scored=num_scored,
            record=record,
            residence=seq.held,
            num_computed=int(left.positions[0]) if len(left) else seq.num_to_forward,
            is_last=len(left) == 0,
        )

    @staticmethod
    def _wanted(seq: Sequence, rows: Rows) -> tuple[int, bool, int]:
        """Logits are wanted of the last known row, of forced rows whose distributions were asked for and not given yet,
        and of the prompt's rows behind which stands a token to be scored. How many, whether one samples, how many are
        scored."""
        if seq.phase is Phase.PROBING or seq.states is not None:
            return 0, False, 0
        if seq.is_watched:  # its tokens are chosen, and scored, later
            speaking = seq.speaking if seq.phase is Phase.AMENDING else seq.speaking[-1:]
            return int((rows.positions >= speaking.start).sum()), False, 0
        forced, end = seq.request.forced_output is not None, seq.num_to_forward
        first_wanted = end - 1
        if forced:
            first_wanted = seq.num_prompt - 1 + seq.num_emitted if seq.request.wants_distributions else end
        elif seq.scores_prompt:
            first_wanted = len(seq.prompt_logprobs)
        num_logits = int((rows.positions >= first_wanted).sum())
        samples = not forced and num_logits > 0 and int(rows.positions[-1]) == end - 1
        num_scored = num_logits - samples if seq.scores_prompt else 0
        if forced and seq.request.num_logprobs is not None:
            num_scored = num_logits
        return num_logits, samples, num_scored

    def _advance(self, item: ScheduledSeq, result: SeqResult) -> StepOutput | None:
        seq = item.sequence
        seq.num_under_way -= 1
        if seq.residence is not item.residence or seq.phase is Phase.FINISHED:
            return None  # it ended meanwhile
        self._charge(seq, item.rows)
        if seq.phase is Phase.PROBING:
            return self._finish_probe(seq) if item.is_last else None
        if seq.phase is Phase.COMPUTING:
            seq.num_computed = item.num_computed
        if seq.is_watched:
            return self._advance_watched(item, result)
        if seq.scores_prompt:
            seq.prompt_logprobs += result.scored
        if seq.num_computed < seq.num_prompt:
            return None
        if seq.num_emitted == 0:
            self._unindexed[seq] = seq.num_prompt
        if seq.states is not None:
            pooled = seq.states.mean(seq.num_prompt)
            self.finish(seq, FinishReason.STOP)
            return StepOutput(
                request_id=seq.request_id,
                pooled=pooled,
                finish_reason=FinishReason.STOP,
                sources=self._sources(seq),
                admitted_at=seq.admitted_at,
            )
        if isinstance(result.sampled, ConstraintFailed):
            return self._fail(seq, result.sampled)
        new = self._next_tokens(seq, result.sampled)
        return self._emit(seq, new, result.logits[len(result.logits) - len(new) :], result.logprobs)

    def _advance_watched(self, item: ScheduledSeq, result: SeqResult) -> StepOutput | None:
        """A token counts once the watch has nothing to say: it is chosen here, not in the step."""
        seq = item.sequence
        if seq.phase is Phase.AMENDING:
            seq.held.draft_logits.append(result.logits)
            return self._verify(seq, torch.cat(seq.held.draft_logits)) if item.is_last else None
        if item.record is not None:
            seq.held.unseen.append(item.record)
        if seq.num_to_draft > 0:
            return self._draft(seq, result.logits)
        try:
            answer = self._admission.watch(seq, asks=item.is_last)
        except Exception as error:
            if (failure := _own_failure(error)) is None:
                raise
            return self._fail(seq, failure)
        if not item.is_last or isinstance(answer, Amendment):
            return None
        if isinstance(answer, Draft):
            seq.num_to_draft = min(answer.num_tokens, self._limit - len(seq.token_ids))
        if seq.num_to_draft > 0:
            return self._draft(seq, result.logits)
        return self._verify(seq, result.logits[-1:])

    def _draft(self, seq: Sequence, logits: torch.Tensor) -> None:
        """One more token that may not count: the likeliest behind the last row."""
        token_id = int(logits[-1].argmax())
        seq.token_ids.append(token_id)
        seq.num_drafted += 1
        seq.num_to_draft = 0 if token_id in seq.request.sampling.stop_token_ids else seq.num_to_draft - 1
        seq.phase = Phase.DRAFTING
        seq.queue = self._next_row(seq)

    def _verify(self, seq: Sequence, logits_SV: torch.Tensor) -> StepOutput | None:
        """The tokens of rows that speak: as long as each is what was drafted, the next row's token counts too."""
        seq.phase = Phase.COMPUTING
        seq.held.draft_logits.clear()
        if seq.num_emitted == 0:
            self._unindexed[seq] = seq.num_prompt
        chosen: list[Sampled] = []
        for logits_1V, drafted in zip(logits_SV.split(1), [*seq.drop_uncounted(), None], strict=True):
            sampled = self._choose_token(seq, logits_1V, seq.num_emitted + len(chosen))
            if isinstance(sampled, ConstraintFailed):
                return self._fail(seq, sampled)
            chosen.append(sampled)
            seq.token_ids.append(sampled.token_id)
            if sampled.token_id != drafted or self._finish_reason(seq, seq.num_emitted + len(chosen)) is not None:
                break
        seq.num_computed = len(seq.token_ids) - 1
        logprobs = tuple(each.logprobs for each in chosen if each.logprobs is not None)
        return self._emit(seq, [each.token_id for each in chosen], logits_SV[: len(chosen)], logprobs)

    @staticmethod
    def _choose_token(seq: Sequence, logits_1V: torch.Tensor, number: int) -> Sample:
        """The output's token of this number: sampled, or forced."""
        request = seq.request
        if request.forced_output is None:
            return sample(logits_1V, [seq.sampling])[0]
        token_id = request.forced_output[number]
        if request.num_logprobs is None:
            return Sampled(token_id)
        return Sampled(token_id, *score(logits_1V, [token_id], request.num_logprobs))

    def _next_row(self, seq: Sequence) -> Rows:
        """The row of the last token."""
        return Rows.one(len(seq.token_ids) - 1, self._levels.num_layers, observed=seq.is_watched)

    def _finish_probe(self, seq: Sequence) -> StepOutput | None:
        try:
            self._admission.finish_probe(seq)
        except Exception as error:
            if (failure := _own_failure(error)) is None:
                raise
            return self._fail(seq, failure)
        return None

    def _fail(self, seq: Sequence, error: EngineError) -> StepOutput:
        """End a sequence with an error."""
        self.abort(seq)
        return StepOutput(request_id=seq.request_id, error=error)

    def _charge(self, seq: Sequence, rows: Rows) -> None:
        """Count the layers that ran for the prompt, by kind of work: drafts are probes, amendments repairs.

        Rows before the first span that ran in full are final, probed or not: they are fresh work."""
        if seq.phase in _KIND_OF_PHASE:
            seq.row_layers[_KIND_OF_PHASE[seq.phase]] += int(rows.depths.sum())
            return
        if rows.positions[0] >= seq.num_prompt:  # ascending: nothing of the prompt
            return
        in_prompt = rows.positions < seq.num_prompt
        reused = np.zeros(len(rows), dtype=bool)
        for span in seq.held.reused:
            reused |= (rows.positions >= span.start) & (rows.positions < span.end)
        probe = np.zeros(len(rows), dtype=bool)
        if seq.phase is Phase.PROBING:
            probe = rows.observed & (rows.positions >= seq.held.view.first_reused)
            probe |= ~reused & (rows.depths < self._levels.num_layers)
        for kind, which in (("probe", probe), ("repair", reused & ~probe), ("fresh", ~reused & ~probe)):
            seq.row_layers[kind] += int(rows.depths[which & in_prompt].sum())

    def _emit(
        self, seq: Sequence, new: list[int], logits: torch.Tensor, logprobs: tuple[TokenLogprobs, ...]
    ) -> StepOutput | None:
        if not new:
            return None
        sources = prompt_logprobs = None
        first = seq.num_emitted == 0
        if first and seq.request.prompt_logprobs is not None:
            prompt_logprobs = (None, *seq.prompt_logprobs)
        if first or seq.is_watched:
            sources = self._sources(seq)
        seq.num_emitted += len(new)
        if (reason := self._finish_reason(seq, seq.num_emitted)) is not None:
            self.finish(seq, reason)
        elif seq.request.forced_output is None or seq.is_watched:
            seq.queue = self._next_row(seq)
        elif len(seq.token_ids) < seq.num_prompt + len(seq.request.forced_output):
            seq.queue = self._forced_rows(seq, seq.request.forced_output)
        return StepOutput(
            request_id=seq.request_id,
            token_ids=tuple(new),
            logits=logits if seq.request.return_logits else None,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            sources=sources,
            admitted_at=seq.admitted_at if first else None,
        )

    @staticmethod
    def _sources(seq: Sequence) -> TokenSources:
        """Where the prompt's KV came from, with the work that it took."""
        assert seq.sources is not None
        return replace(
            seq.sources,
            probe_row_layers=seq.row_layers["probe"],
            repair_row_layers=seq.row_layers["repair"],
            fresh_row_layers=seq.row_layers["fresh"],
            screening_row_layers=seq.row_layers["screening"],
            fallbacks=tuple(sorted(seq.fallbacks.items())),
        )

    def _next_tokens(self, seq: Sequence, sampled: Sampled | None) -> list[int]:
        """The tokens that this step brings: sampled, or those forced ones whose distribution is known now."""
        forced = seq.request.forced_output
        if forced is None:
            if sampled is None:
                return []
            seq.token_ids.append(sampled.token_id)
            return [sampled.token_id]
        return list(forced[seq.num_emitted : seq.num_computed - seq.num_prompt + 1])

    def _forced_rows(self, seq: Sequence, forced: tuple[int, ...]) -> Rows:
        """All rows of a forced output that are left: its tokens are known."""
        seq.token_ids += forced[len(seq.token_ids) - seq.num_prompt :]
        positions = np.arange(seq.num_prompt + seq.num_emitted - 1, seq.num_to_forward)
        return Rows.of(positions, np.full(len(positions), self._levels.num_layers))

    def _finish_reason(self, seq: Sequence, num_emitted: int) -> FinishReason | None:
        """Why it ends behind so many tokens."""
        sampling, forced = seq.request.sampling, seq.request.forced_output
        if forced is not None:
            return FinishReason.STOP if num_emitted == len(forced) else None
        if seq.token_ids[-1] in sampling.stop_token_ids or seq.sampling.is_finished:
            return FinishReason.STOP
        if num_emitted >= sampling.max_tokens or len(seq.token_ids) >= self._limit:
            return FinishReason.LENGTH
        return None


def _own_failure(error: Exception) -> EngineError | None:
    """What ends the one request at whose admission or plan an error was raised; None where it is not that request's."""
    if isinstance(error, SelectorFailed):
        return error
    if is_out_of_memory(error):
        return out_of_memory(error, "to reuse KV", "ask again; if it comes again, lower --kv-memory")
    return None
