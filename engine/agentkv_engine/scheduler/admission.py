"""What a sequence reads and what it computes: prefix hits and spans are placed, the rest becomes rows.

Prompt positions fall into three kinds: covered by the prefix index, in a reused span, fresh. Fresh rows are computed at
full depth; reused rows at the depth that the plan gives them; the last known row always at full depth, since its logits
are wanted.
"""

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

import numpy as np

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.key_table import NO_SLOT, Keys, KeyTable
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.prefix_index import BlockChain, PrefixEntry, PrefixIndex
from agentkv_engine.cache.residents import Residents
from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.errors import RunnerLost, SelectorFailed
from agentkv_engine.memory_errors import is_out_of_memory
from agentkv_engine.request import ReuseMode, TokenSources
from agentkv_engine.reuse import Amendment, Draft, PlacedSpan, Probe, RepairPlan, ReuseView
from agentkv_engine.runner.observer import Observing
from agentkv_engine.scheduler.sequence import Phase, PrivateSlots, ProbeRecord, ProbeState, Residence, Rows, Sequence

Answer = TypeVar("Answer")


class Admission:
    """Gives sequences their residence in the pool, and their rows; takes both back."""

    def __init__(
        self, pool: BlockPool, prefixes: PrefixIndex, residents: Residents, levels: Levels, observer: Observing
    ) -> None:
        self._pool = pool
        self._prefixes = prefixes
        self._residents = residents
        self._levels = levels
        self._observer = observer

    def admit(self, seq: Sequence) -> bool:
        """Pin what the sequence reads and queue its rows; False (and nothing held) where the pool has no room now.

        Raises:
            SelectorFailed: the request's selector raised, or broke its contract. As with all that is raised here,
                nothing is held.
        """
        if not self._fetch(seq):
            return False
        entries = self._matching_entries(seq)
        spans = self._placeable_spans(seq, len(entries) * BLOCK_SIZE)
        residence = self._place(seq, entries, spans)
        self._pool.pin(residence.shared_blocks)
        fresh = len(seq.token_ids) - len(entries) * BLOCK_SIZE - sum(span.num_tokens for span in spans)
        if self._pool.num_unpinned < -(-max(fresh, 1) // BLOCK_SIZE):
            self._pool.unpin(residence.shared_blocks)
            return False
        seq.residence = residence
        try:
            self._queue_rows(seq)
        except Exception:
            self.release(seq)
            raise
        return True

    def release(self, seq: Sequence) -> None:
        """Drop all pins of a sequence; it must be admitted again before it can run."""
        residence = seq.held
        seq.drop_uncounted()
        if residence.probe is not None:
            residence.probe.scratch.release()
        residence.private.release()
        self._pool.unpin(residence.shared_blocks)
        seq.residence, seq.num_computed = None, 0

    def finish_probe(self, seq: Sequence) -> None:
        """The probe has run: queue the rows of the plan that the selector makes of it, or of one more probe.

        Raises:
            SelectorFailed: the request's selector raised, or broke its contract.
        """
        residence, probe = seq.held, seq.held.probe
        assert probe is not None
        assert seq.request.selector is not None
        observation = self._observer.observe(residence, probe)
        answer = _ask(seq.request.selector.plan, residence.view, observation)
        seq.row_layers["screening"] += observation.row_layers
        if isinstance(answer, Probe):
            _check_probe(answer, residence.view, probe)
            self._queue_probe(seq, answer)
            return
        assert probe.shared_slots_KN is not None
        residence.table.restore(probe.borrowed_N, probe.shared_slots_KN)
        residence.own_P[probe.borrowed_N] = NO_SLOT
        probe.scratch.release()
        residence.probe = None
        self._freeze(seq, answer)
        done = probe.leading_depth == residence.view.num_layers
        self._queue_planned(seq, num_done=residence.view.first_reused if done else 0)

    def record(self, seq: Sequence, rows: Rows) -> ProbeRecord:
        """Where these rows, some of them observed, leave their queries."""
        probe = seq.held.probe
        if probe is not None:
            return probe.records[-1]
        positions = tuple(rows.positions[rows.observed].tolist())
        return self._observer.record(Probe(positions=positions, depth=seq.held.view.num_layers))

    def watch(self, seq: Sequence, *, asks: bool) -> Draft | Amendment | None:
        """Let the watch of a sequence see rows that have run, and left their queries.

        Args:
            seq: the sequence.
            asks: whether to ask it what has to be done before the next token counts. The rows of an amendment are
                queued then; without an answer the watch is over.

        Raises:
            SelectorFailed: the watch raised, or broke its contract.
        """
        residence = seq.held
        assert residence.watch is not None, f"{seq.request_id} is not watched"
        seen = ProbeState(PrivateSlots(self._pool), records=residence.unseen)
        observation = self._observer.observe(residence, seen)
        _ask(residence.watch.see, observation)
        answer = _ask(residence.watch.ask, observation, seq.speaking) if asks else None
        residence.unseen = []
        seq.row_layers["screening"] += observation.row_layers
        if asks:
            _check_answer(answer, seq)
            seq.watch_is_over = answer is None
        if isinstance(answer, Amendment):
            self._amend(seq, answer)
        return answer

    def _amend(self, seq: Sequence, amendment: Amendment) -> None:
        """Queue an amendment's rows. Where others may read already what a row wrote, it writes elsewhere."""
        residence, num_layers = seq.held, seq.held.view.num_layers
        assert seq.plan is not None
        assert seq.sources is not None
        repairs = np.asarray(amendment.repairs, dtype=np.int64)
        positions = np.union1d(repairs, seq.speaking)
        own = residence.own_slots(positions)
        sealed = (own != NO_SLOT) & self._pool.are_sealed(own)
        residence.own_P[positions[sealed]] = NO_SLOT
        residence.depths_P[repairs] = num_layers
        seq.plan = seq.plan.with_repairs(amendment.repairs, num_layers, left=amendment.left)
        seq.sources = replace(
            seq.sources,
            reused=seq.sources.reused - len(repairs),
            repaired=seq.sources.repaired + len(repairs),
            left=amendment.left,
        )
        seq.queue = Rows.of(positions, np.full(len(positions), num_layers))
        seq.num_computed = min(seq.num_computed, int(positions[0]))  # what runs again can't be kept meanwhile
        seq.phase = Phase.AMENDING

    def index(self, seq: Sequence, *, num_tokens: int) -> None:
        """Put the full blocks of the first `num_tokens` computed positions into the prefix index; where a reply decided
        what was repaired, those that are exact: the next one may need other rows."""
        residence = seq.held
        if seq.plan is not None and seq.plan.watch is not None:
            num_tokens = min(num_tokens, residence.exact_until)
        first, end = residence.num_indexed, num_tokens // BLOCK_SIZE
        self._prefixes.insert(
            self._blocks(seq).of(seq.token_ids, num_tokens),
            first_block=first,
            keys=residence.table.copy_out(first * BLOCK_SIZE, end * BLOCK_SIZE),
            exact_until=residence.exact_until,
            depths=residence.mean_depths(first, end),
            hops=residence.hops,
            rule=seq.request.selector.name if seq.request.selector is not None else "",
        )
        residence.num_indexed = end

    def _matching_entries(self, seq: Sequence) -> list[PrefixEntry]:
        mode = seq.request.mode
        if mode is ReuseMode.OFF or seq.reuse_given_up:
            return []
        rule = seq.request.selector.name if mode is ReuseMode.SCREENED and seq.request.selector is not None else None
        return self._prefixes.match(self._blocks(seq).of(seq.token_ids), rule=rule)

    def _blocks(self, seq: Sequence) -> BlockChain:
        if seq.blocks is None:
            seq.blocks = self._prefixes.chain(seq.request.tenant)
        return seq.blocks

    def _fetch(self, seq: Sequence) -> bool:
        """Have residents that left the pool brought back; False where the prompt would not fit beside them."""
        if not self._residents.can_fetch or all(span.handle in self._residents for span in seq.spans):
            return True
        entries = self._matching_entries(seq)
        num_prefix = len(entries) * BLOCK_SIZE
        behind = [span for span in seq.spans if span.end > num_prefix]
        missing = [span for span in behind if span.handle not in self._residents]
        here = sum(span.num_tokens for span in behind) - sum(span.num_tokens for span in missing)
        needed = -(-max(len(seq.token_ids) - num_prefix - here, 0) // BLOCK_SIZE) + len(missing)
        read = {entry.keeper_id for entry in entries}
        read.update(span.handle for span in behind if span.handle is not None and span.handle in self._residents)
        blocks = [block for keeper_id in read for block in self._pool.blocks_of(keeper_id)]
        self._pool.pin(blocks)  # they must not make room for those that come
        try:
            if needed > self._pool.num_unpinned:
                return False
            self._residents.fetch([span.handle for span in behind if span.handle is not None])
        finally:
            self._pool.unpin(blocks)
        seq.restored.update(span.handle for span in missing if span.handle in self._residents)
        return True

    def _placeable_spans(self, seq: Sequence, num_prefix: int) -> list[PlacedSpan]:
        """The spans behind the prefix hit whose residents are still there."""
        spans = []
        for span in seq.spans:
            hidden = min(max(num_prefix - span.start, 0), span.num_tokens)
            rest = replace(span, start=span.start + hidden, resident_start=span.resident_start + hidden)
            if rest.num_tokens == 0:
                continue
            if span.handle not in self._residents:
                seq.fallbacks["segment_gone"] += 1
                continue
            spans.append(replace(rest, hops=self._residents.hops_of(rest)))
        if len(spans) < len(seq.spans):
            seq.spans = tuple(span for span in seq.spans if span.handle in self._residents)
        return spans

    def _place(self, seq: Sequence, entries: list[PrefixEntry], spans: list[PlacedSpan]) -> Residence:
        table = KeyTable(len(self._levels), len(seq.token_ids) + BLOCK_SIZE)
        blocks: set[int] = set()
        if entries:
            table.place(0, Keys.joined([entry.keys for entry in entries]))
            blocks.update(*(self._pool.blocks_of(entry.keeper_id) for entry in entries))
        for span in spans:
            table.place(span.start, self._residents.keys_for(span))
            assert span.handle is not None
            self._residents.touch(span.handle)
            blocks.update(self._pool.blocks_of(span.handle))
        hits = _screened_hits(entries)
        num_exact = _num_exact(entries) * BLOCK_SIZE
        view = ReuseView(
            num_tokens=seq.num_prompt,
            num_layers=self._levels.num_layers,
            num_prefix=min(num_exact, seq.num_prompt),
            spans=(*_clip(hits, seq.num_prompt), *spans),
        )
        return Residence(
            table=table,
            private=PrivateSlots(self._pool),
            own_P=np.full(len(seq.token_ids) + BLOCK_SIZE, NO_SLOT, dtype=np.int64),
            shared_blocks=sorted(blocks),
            view=view,
            num_exact=num_exact,
            reused=(*hits, *spans),
            depths_P=np.empty(0, dtype=np.int64),
            hops=max([1 + span.hops for span in spans] + [hit.hops for hit in hits], default=0),
            num_indexed=num_exact // BLOCK_SIZE,
        )

    def _queue_rows(self, seq: Sequence) -> None:
        """A plan is frozen, and holds after a preemption unless rows are read now that it was not made for."""
        view, selector = seq.held.view, seq.request.selector
        if seq.plan is None or not _was_planned(seq, view):
            if selector is not None and view.spans and (probe := _ask(selector.probe, view)) is not None:
                seq.held.probe = ProbeState(PrivateSlots(self._pool))
                _check_probe(probe, view, seq.held.probe)
                self._queue_probe(seq, probe)
                if len(seq.queue) == 0:  # a mere look, and nothing to compute before the first span
                    self.finish_probe(seq)
                return
            plan = _ask(selector.plan, view, None) if selector is not None and view.spans else RepairPlan()
            self._freeze(seq, plan)
        self._queue_planned(seq, num_done=0)

    def _freeze(self, seq: Sequence, plan: object) -> None:
        if not isinstance(plan, RepairPlan):
            raise SelectorFailed(f"the selector answered {type(plan).__name__}, not a plan: mend the selector")
        _check_plan(plan, seq.held.view)
        if plan.watch is not None and not self._observer.watches:
            raise SelectorFailed("nothing can be watched in a pipeline: take another selector, e.g. reading_change")
        seq.plan, seq.planned_spans, seq.watch_is_over = plan, seq.held.view.spans, False

    def _queue_probe(self, seq: Sequence, probe: Probe) -> None:
        """Fresh rows before the first reused span come first: in full, and for good, where rows are probed; only as far
        as their keys are looked at where none is. Then they run again with the others, as the probe's rows do."""
        residence = seq.held
        view, table, state = residence.view, residence.table, residence.probe
        assert state is not None
        observed = np.asarray(probe.positions, dtype=np.int64)
        reused = observed[_mask_of(residence.reused, len(seq.token_ids))[observed]]
        state.begin(self._observer.record(probe), reused, table.slots_at(reused))
        depth = view.num_layers if probe.positions else self._observer.look_depth
        leading = np.arange(view.num_prefix, view.first_reused if depth > state.leading_depth else view.num_prefix)
        state.leading_depth = max(depth, state.leading_depth)
        positions = np.union1d(leading, observed)
        depths = np.where(np.isin(positions, leading), depth, self._levels.round_up(np.asarray([probe.depth])))
        seq.queue = Rows.of(positions, depths, np.isin(positions, observed))
        seq.phase = Phase.PROBING

    def _queue_planned(self, seq: Sequence, *, num_done: int) -> None:
        """Queue fresh and planned rows, in order of position, leaving out the first `num_done` fresh ones."""
        assert seq.plan is not None
        residence = seq.held
        num_layers = self._levels.num_layers
        num_known = len(seq.token_ids)
        depths_P = np.full(num_known, num_layers, dtype=np.int64)
        wanted_P = np.ones(num_known, dtype=bool)
        wanted_P[: max(residence.num_exact, num_done)] = False
        reused_P = _mask_of(residence.reused, num_known)
        planned_P = np.zeros(num_known, dtype=np.int64)
        planned_P[list(seq.plan.positions)] = self._levels.round_up(np.asarray(seq.plan.depths, dtype=np.int64))
        planned_P[[seq.num_prompt - 1, seq.num_to_forward - 1]] = num_layers
        depths_P[reused_P] = planned_P[reused_P]
        wanted_P[reused_P] = depths_P[reused_P] > 0
        wanted_P[_first_logits(seq) : seq.num_to_forward] = True
        depths_P[_first_logits(seq) : seq.num_to_forward] = num_layers
        wanted_P[seq.num_to_forward :] = False
        positions = np.flatnonzero(wanted_P)
        if seq.plan.watch is not None and residence.view.spans and not seq.watch_is_over:
            residence.watch = _ask(seq.plan.watch, residence.view, seq.plan.positions)
        observed = positions >= (residence.view.first_reused if seq.is_watched else num_known)
        seq.queue = Rows.of(positions, depths_P[positions], observed)
        seq.phase = Phase.COMPUTING
        residence.depths_P = depths_P
        inexact = np.flatnonzero(reused_P & (depths_P < num_layers))
        residence.exact_until = int(inexact[0]) if len(inexact) else 1 << 62
        if seq.num_emitted == 0:
            seq.sources = self._count(seq, reused_P, wanted_P)

    def _count(self, seq: Sequence, reused_P: np.ndarray, wanted_P: np.ndarray) -> TokenSources:
        """Sources of the prompt's tokens; hits of the screened prefix count as prefix where they are not repaired."""
        prompt, view = slice(seq.num_prompt), seq.held.view
        hit_P = _mask_of([span for span in seq.held.reused if span.handle is None], len(reused_P))
        hit_P[: seq.held.num_exact] = True
        prefix = int((hit_P & ~wanted_P)[prompt].sum())
        reused = int((reused_P & ~hit_P & ~wanted_P)[prompt].sum())
        repaired = int((reused_P & wanted_P)[prompt].sum())
        return TokenSources(
            prompt=seq.num_prompt,
            prefix=prefix,
            reused=reused,
            repaired=repaired,
            computed=seq.num_prompt - prefix - reused - repaired,
            spans=tuple((span.start, span.end) for span in view.spans if span.handle is not None),
            restored=sum(span.num_tokens for span in view.spans if span.handle in seq.restored),
            left=seq.plan.left if seq.plan is not None else None,
        )


def _first_logits(seq: Sequence) -> int:
    """The first position whose logits are wanted: it and those after it must have rows, whatever could be read."""
    if seq.request.forced_output is not None and seq.request.wants_distributions:
        return min(seq.num_prompt - 1 + seq.num_emitted, seq.num_to_forward - 1)
    return seq.num_to_forward - 1


def _mask_of(spans: Ordered[PlacedSpan], size: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for span in spans:
        mask[span.start : span.end] = True
    return mask


def _num_exact(entries: list[PrefixEntry]) -> int:
    return next((number for number, entry in enumerate(entries) if not entry.exact), len(entries))


def _screened_hits(entries: list[PrefixEntry]) -> list[PlacedSpan]:
    """Entries from the first that is not exact on, as spans whose context has not changed."""
    hits: list[PlacedSpan] = []
    start = _num_exact(entries)
    for hops, group in groupby(entries[start:], key=lambda entry: entry.hops):
        depths = [entry.depth_spent for entry in group]
        end = start + len(depths)
        hits.append(
            PlacedSpan(start=start * BLOCK_SIZE, end=end * BLOCK_SIZE, handle=None, hops=hops, depth_spent=min(depths))
        )
        start = end
    return hits


def _was_planned(seq: Sequence, view: ReuseView) -> bool:
    """Whether every row that would be read from a segment was so when the plan was made. (What is in the prefix index
    by now has been repaired by the same rule.)"""
    planned = _mask_of([s for s in seq.planned_spans if s.handle is not None], view.num_tokens)
    return all(planned[span.start : span.end].all() for span in view.spans if span.handle is not None)


def _check_plan(plan: RepairPlan, view: ReuseView) -> None:
    """A selector is code of ours or of a plug-in: hold it to the contract before its plan is frozen."""
    reused = _mask_of(view.spans, view.num_tokens)
    positions = np.asarray(plan.positions, dtype=np.int64)
    inside = (positions >= 0) & (positions < view.num_tokens)
    if not (inside.all() and reused[positions].all()):
        raise SelectorFailed("the selector's plan names positions outside the reused spans: mend the selector")
    depths = np.asarray(plan.depths, dtype=np.int64)
    if not ((depths >= 1) & (depths <= view.num_layers)).all():
        raise SelectorFailed(f"the selector's plan has depths outside 1..{view.num_layers}: mend the selector")


def _check_answer(answer: Draft | Amendment | None, seq: Sequence) -> None:
    """Hold a watch to its contract."""
    assert seq.plan is not None
    if isinstance(answer, Amendment):
        placed = [span for span in seq.held.view.spans if span.handle is not None]
        reused = np.flatnonzero(_mask_of(placed, seq.num_prompt - 1))  # the last row runs in any case
        if not np.isin(answer.repairs, np.setdiff1d(reused, seq.plan.positions)).all():
            raise SelectorFailed("the selector's watch repairs rows that are not stale: mend the selector")
    elif seq.num_drafted or (answer is not None and answer.num_tokens < 1):
        raise SelectorFailed("the selector's watch drafts nothing, or does nothing with its draft: mend the selector")


def _check_probe(probe: Probe, view: ReuseView, state: ProbeState) -> None:
    ascending = list(probe.positions) == sorted(set(probe.positions))
    inside = not probe.positions or (view.num_prefix <= probe.positions[0] and probe.positions[-1] < view.num_tokens)
    if not (ascending and inside and 1 <= probe.depth <= view.num_layers):
        raise SelectorFailed(
            "the selector's probe is unsorted, or not inside prompt (behind its exact prefix) and layers: "
            "mend the selector"
        )
    if state.records and not probe.positions:
        raise SelectorFailed("the selector asks for one more probe and names no rows: mend the selector")
    if state.names(np.asarray(probe.positions)).any():
        raise SelectorFailed("the selector probes rows a second time: mend the selector")


def _ask(question: Callable[..., Answer], *arguments: object) -> Answer:
    """What a selector answers; its own faults end its request, not the engine."""
    try:
        return question(*arguments)
    except RunnerLost:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SelectorFailed(f"the selector raised {type(error).__name__}: {error}") from error


def _clip(spans: list[PlacedSpan], end: int) -> list[PlacedSpan]:
    return [replace(span, end=min(span.end, end)) for span in spans if span.start < end]
