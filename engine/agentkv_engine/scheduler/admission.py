"""What a sequence reads and what it computes: prefix hits and spans are placed, the rest becomes rows.

Prompt positions fall into three kinds: covered by the prefix index, in a reused span, fresh. Fresh rows are computed at
full depth; reused rows at the depth that the plan gives them; the last known row always at full depth, since its logits
are wanted.
"""

from collections.abc import Sequence as Ordered
from dataclasses import replace

import numpy as np
import torch

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.key_table import NO_SLOT, KeyTable
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.prefix_index import PrefixEntry, PrefixIndex
from agentkv_engine.cache.residents import Residents
from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.request import ReuseMode, TokenSources
from agentkv_engine.reuse import Observation, PlacedSpan, Probe, RepairPlan, ReuseView
from agentkv_engine.scheduler.sequence import Phase, PrivateSlots, ProbeState, Residence, Rows, Sequence


class Admission:
    """Gives sequences their residence in the pool, and their rows; takes both back."""

    def __init__(
        self, pool: BlockPool, prefixes: PrefixIndex, residents: Residents, levels: Levels, device: str
    ) -> None:
        self._pool = pool
        self._prefixes = prefixes
        self._residents = residents
        self._levels = levels
        self._device = device

    def admit(self, seq: Sequence) -> bool:
        """Pin what the sequence reads and queue its rows; False (and nothing held) where the pool has no room now."""
        entries = self._matching_entries(seq)
        spans = self._placeable_spans(seq, len(entries) * BLOCK_SIZE)
        residence = self._place(seq, entries, spans)
        self._pool.pin(residence.shared_blocks)
        fresh = len(seq.token_ids) - len(entries) * BLOCK_SIZE - sum(span.num_tokens for span in spans)
        if self._pool.num_unpinned < -(-max(fresh, 1) // BLOCK_SIZE):
            self._pool.unpin(residence.shared_blocks)
            return False
        seq.residence = residence
        self._queue_rows(seq)
        return True

    def release(self, seq: Sequence) -> None:
        """Drop all pins of a sequence; it must be admitted again before it can run."""
        residence = seq.held
        if residence.probe is not None:
            residence.probe.scratch.release()
        residence.private.release()
        self._pool.unpin(residence.shared_blocks)
        seq.residence, seq.num_computed = None, 0

    def finish_probe(self, seq: Sequence) -> None:
        """The probe has run: give its scratch back, make the plan, and queue the rows that it names."""
        residence, probe = seq.held, seq.held.probe
        assert probe is not None
        residence.table.restore(probe.borrowed_N, probe.shared_slots_KN)
        residence.own_P[probe.borrowed_N] = NO_SLOT
        probe.scratch.release()
        residence.probe = None
        observation = Observation(positions=probe.positions, attention_LRP=probe.record_LRP)
        self._make_plan(seq, observation)
        self._queue_planned(seq, num_done=self._first_reused(residence.view))

    def index(self, seq: Sequence, *, num_tokens: int) -> None:
        """Put the full blocks of the first `num_tokens` computed positions into the prefix index."""
        residence = seq.held
        self._prefixes.insert(
            seq.token_ids[:num_tokens],
            seq.request.tenant,
            first_block=residence.num_indexed,
            keys_of=residence.table.copy_out,
            is_exact=lambda end: end <= residence.exact_until,
            depth_of=residence.mean_depth,
            hops=residence.hops,
        )
        residence.num_indexed = num_tokens // BLOCK_SIZE

    def _matching_entries(self, seq: Sequence) -> list[PrefixEntry]:
        mode = seq.request.mode
        if mode is ReuseMode.OFF or seq.reuse_given_up:
            return []
        return self._prefixes.match(seq.token_ids, seq.request.tenant, screened=mode is ReuseMode.SCREENED)

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
            spans.append(rest)
        if len(spans) < len(seq.spans):
            seq.spans = tuple(span for span in seq.spans if span.handle in self._residents)
        return spans

    def _place(self, seq: Sequence, entries: list[PrefixEntry], spans: list[PlacedSpan]) -> Residence:
        table = KeyTable(len(self._levels), len(seq.token_ids) + BLOCK_SIZE)
        blocks: set[int] = set()
        for number, entry in enumerate(entries):
            table.place(number * BLOCK_SIZE, entry.keys)
            blocks.update(self._pool.blocks_of(entry.keeper_id))
        for span in spans:
            table.place(span.start, self._residents.keys_for(span))
            assert span.handle is not None
            self._residents.touch(span.handle)
            blocks.update(self._pool.blocks_of(span.handle))
        hits = _screened_hits(entries)
        view = ReuseView(
            num_tokens=len(seq.token_ids),
            num_layers=self._levels.num_layers,
            num_prefix=_num_exact(entries) * BLOCK_SIZE,
            spans=(*hits, *spans),
        )
        return Residence(
            table=table,
            private=PrivateSlots(self._pool),
            own_P=np.full(len(seq.token_ids) + BLOCK_SIZE, NO_SLOT, dtype=np.int64),
            shared_blocks=sorted(blocks),
            view=view,
            depths_P=np.empty(0, dtype=np.int64),
            hops=max([1 + span.hops for span in spans] + [hit.hops for hit in hits], default=0),
            num_indexed=len(entries),
        )

    def _queue_rows(self, seq: Sequence) -> None:
        view, selector = seq.held.view, seq.request.selector
        if seq.plan is None and view.spans and selector is not None:
            probe = selector.probe(view)
            if probe is not None:
                self._queue_probe(seq, probe)
                return
        if seq.plan is None:
            self._make_plan(seq, None)
        self._queue_planned(seq, num_done=0)

    def _make_plan(self, seq: Sequence, observation: Observation | None) -> None:
        view, selector = seq.held.view, seq.request.selector
        seq.plan = selector.plan(view, observation) if selector is not None and view.spans else RepairPlan()
        _check_plan(seq.plan, view)

    def _queue_probe(self, seq: Sequence, probe: Probe) -> None:
        """Fresh rows before the first reused span are final; the probe's rows run again once the plan is made."""
        residence = seq.held
        view, table = residence.view, residence.table
        observed = np.asarray(probe.positions, dtype=np.int64)
        borrowed = observed[table.slots_at(observed)[0] != NO_SLOT]
        residence.probe = ProbeState(
            scratch=PrivateSlots(self._pool),
            borrowed_N=borrowed,
            shared_slots_KN=table.slots_at(borrowed),
            positions=probe.positions,
            record_LRP=torch.zeros(probe.depth, len(observed), view.num_tokens, device=self._device),
        )
        final = np.arange(view.num_prefix, self._first_reused(view))
        positions = np.union1d(final, observed)
        depths = np.where(np.isin(positions, final), view.num_layers, self._levels.round_up(np.asarray([probe.depth])))
        seq.queue = Rows.of(positions, depths, np.isin(positions, observed))
        seq.phase = Phase.PROBING

    def _first_reused(self, view: ReuseView) -> int:
        return min([span.start for span in view.spans], default=view.num_prefix)

    def _queue_planned(self, seq: Sequence, *, num_done: int) -> None:
        """Queue fresh and planned rows, in order of position, leaving out the first `num_done` fresh ones."""
        assert seq.plan is not None
        residence = seq.held
        view, num_layers = residence.view, self._levels.num_layers
        num_known = len(seq.token_ids)
        depths_P = np.full(num_known, num_layers, dtype=np.int64)
        wanted_P = np.ones(num_known, dtype=bool)
        wanted_P[: max(view.num_prefix, num_done)] = False
        reused_P = _mask_of(view.spans, num_known)
        planned_P = np.zeros(num_known, dtype=np.int64)
        planned_P[list(seq.plan.positions)] = self._levels.round_up(np.asarray(seq.plan.depths, dtype=np.int64))
        planned_P[seq.num_to_forward - 1] = num_layers
        depths_P[reused_P] = planned_P[reused_P]
        wanted_P[reused_P] = depths_P[reused_P] > 0
        wanted_P[seq.num_to_forward - 1] = True
        wanted_P[seq.num_to_forward :] = False
        positions = np.flatnonzero(wanted_P)
        seq.queue = Rows.of(positions, depths_P[positions])
        seq.phase = Phase.COMPUTING
        residence.depths_P = depths_P
        inexact = np.flatnonzero(reused_P & (depths_P < num_layers))
        residence.exact_until = int(inexact[0]) if len(inexact) else 1 << 62
        if seq.num_emitted == 0:
            seq.sources = self._count(seq, reused_P, wanted_P)

    def _count(self, seq: Sequence, reused_P: np.ndarray, wanted_P: np.ndarray) -> TokenSources:
        """Sources of the prompt's tokens; hits of the screened prefix count as prefix where they are not repaired."""
        prompt, view = slice(seq.num_prompt), seq.held.view
        hit_P = _mask_of([span for span in view.spans if span.handle is None], len(reused_P))
        hit_P[: view.num_prefix] = True
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
        )


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
    num_exact = _num_exact(entries)
    for number, entry in enumerate(entries[num_exact:], start=num_exact):
        start = number * BLOCK_SIZE
        if hits and hits[-1].end == start and hits[-1].hops == entry.hops:
            depth = min(hits[-1].depth_spent, entry.depth_spent)
            hits[-1] = replace(hits[-1], end=start + BLOCK_SIZE, depth_spent=depth)
        else:
            end = start + BLOCK_SIZE
            hits.append(PlacedSpan(start=start, end=end, handle=None, hops=entry.hops, depth_spent=entry.depth_spent))
    return hits


def _check_plan(plan: RepairPlan, view: ReuseView) -> None:
    """A selector is code of ours or of a plug-in: hold it to the contract before its plan is frozen."""
    reused = _mask_of(view.spans, view.num_tokens)
    positions = np.asarray(plan.positions, dtype=np.int64)
    inside = (positions >= 0) & (positions < view.num_tokens)
    assert inside.all(), "the plan names positions outside the prompt"
    assert reused[positions].all(), "the plan names positions outside the reused spans"
    assert all(1 <= depth <= view.num_layers for depth in plan.depths), "the plan has depths outside 1..num_layers"
