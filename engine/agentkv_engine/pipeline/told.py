"""What the driver has told the stages of its sequences, and what it has to tell them before the next step.

Stages need of a sequence: its tokens, how it is sampled, which slots it reads and writes. What changes between two
steps is little, so the differences are told. Whatever a sequence has gone through meanwhile, its state now against what
was told says all: scheduler and admission know nothing of this.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch

from agentkv_engine.cache.key_table import NO_SLOT
from agentkv_engine.errors import ConstraintFailed
from agentkv_engine.pipeline.messages import Admit, BeginProbe, Decodes, Drop, EndProbe, Enter, Forget, Item, Update
from agentkv_engine.pipeline.packing import pack_ids, pack_repeats, pack_stretches
from agentkv_engine.request import Output
from agentkv_engine.sampling.sampler import fill_bitmask
from agentkv_engine.scheduler.output import ScheduledSeq
from agentkv_engine.scheduler.sequence import Phase, ProbeState, Residence, Sequence


@dataclass(slots=True, eq=False)
class _ToldResidence:
    number: int
    residence: Residence
    num_probes: int = 0
    num_borrowed: int = 0
    is_probed: bool = False


@dataclass(slots=True, eq=False)
class _ToldSequence:
    number: int
    num_tokens: int
    residence: _ToldResidence | None = None


@dataclass(frozen=True, slots=True)
class ToldStep:
    """What to tell of a step: changes, rows, and the constraints that failed, by place in the step."""

    updates: list[Update]
    items: list[Item]
    decodes: Decodes
    failed: dict[int, ConstraintFailed]


class Told:
    """State of the conversation with one group of stages.

    Args:
        vocab_size: the model's, for masks.
        num_layers: the model's.
    """

    def __init__(self, vocab_size: int, num_layers: int) -> None:
        self._vocab_size = vocab_size
        self._num_layers = num_layers
        self._numbers = count()
        self._sequences: dict[Sequence, _ToldSequence] = {}
        self._looked_at: dict[int, _ToldResidence] = {}

    def step(self, scheduled: tuple[ScheduledSeq, ...]) -> ToldStep:
        """What to tell before a step and of its rows."""
        updates = list(self._ended())
        items: list[Item] = []
        decodes: list[tuple[int, int, int, int, int]] = []
        failed: dict[int, ConstraintFailed] = {}
        for place, entry in enumerate(scheduled):
            known = self._sequences.get(entry.sequence)
            if known is not None and self._goes_on(entry, known):
                decodes.append((place, *self._decode(entry, known)))
                continue
            updates += self._introduced(entry)
            told = self._sequences[entry.sequence]
            assert told.residence is not None, "it was introduced"
            mask, failure = self._mask(entry)
            if failure is not None:
                failed[place] = failure
            items.append(self._item(entry, told, told.residence, mask))
        updates += [Drop(told.number) for told in self._looked_at.values()]
        self._looked_at.clear()
        columns = np.asarray(decodes, dtype=np.int64).reshape(-1, 5).T
        return ToldStep(updates, items, Decodes(*(pack_ids(column) for column in columns)), failed)

    def look(self, residence: Residence) -> tuple[int, list[Update]]:
        """The number of what a sequence holds, and what to tell before it is looked at."""
        updates: list[Update] = []
        known = [s.residence for s in self._sequences.values() if s.residence and s.residence.residence is residence]
        told = known[0] if known else self._looked_at.get(id(residence))
        if told is None:
            told, admitted = self._admit(residence)
            self._looked_at[id(residence)] = told
            updates.append(admitted)
        return told.number, [*updates, *self._probes(told)]

    def _goes_on(self, entry: ScheduledSeq, told: _ToldSequence) -> bool:
        """Whether it is one of `Decodes`."""
        residence, seq, rows = told.residence, entry.sequence, entry.rows
        return (
            residence is not None
            and residence.residence is entry.residence
            and not residence.is_probed
            and entry.residence.probe is None
            and entry.samples
            and len(rows) == entry.num_logits == 1
            and entry.num_scored == 0
            and seq.sampling.constraint is None
            and told.num_tokens == rows.positions[0] == len(seq.token_ids) - 1
            and rows.depths[0] == self._num_layers
        )

    @staticmethod
    def _decode(entry: ScheduledSeq, told: _ToldSequence) -> tuple[int, int, int, int]:
        """Sequence, position, slot and token of a row of `Decodes`."""
        position = told.num_tokens
        slot = int(entry.residence.own_P[position])
        assert slot != NO_SLOT, "a row has nowhere to write"
        told.num_tokens += 1
        return told.number, position, slot, entry.sequence.token_ids[position]

    def _introduced(self, entry: ScheduledSeq) -> Iterator[Update]:
        """What stages have to know of a sequence before its rows come."""
        seq = entry.sequence
        if seq not in self._sequences:
            yield self._enter(seq)
        told = self._sequences[seq]
        if told.residence is None:
            told.residence = self._looked_at.pop(id(entry.residence), None)
        if told.residence is None:
            told.residence, admitted = self._admit(entry.residence)
            yield admitted
        yield from self._probes(told.residence)

    def _mask(self, entry: ScheduledSeq) -> tuple[bytes | None, ConstraintFailed | None]:
        """Which tokens may come, where a constraint says so, and its failure."""
        sampling = entry.sequence.sampling
        if not entry.samples or sampling.constraint is None:
            return None, None
        words = torch.zeros(1, -(-self._vocab_size // 32), dtype=torch.int32)
        failure = fill_bitmask(sampling, words, 0)
        return words.numpy().tobytes(), failure

    def _ended(self) -> Iterator[Update]:
        """What was told of and is no more: residences of sequences that were preempted, and sequences."""
        for seq, told in list(self._sequences.items()):
            if told.residence is not None and seq.residence is not told.residence.residence:
                yield Drop(told.residence.number)
                told.residence = None
            if seq.residence is None and seq.phase is Phase.FINISHED:
                yield Forget(told.number)
                del self._sequences[seq]

    def _enter(self, seq: Sequence) -> Enter:
        told = self._sequences[seq] = _ToldSequence(next(self._numbers), seq.num_prompt)
        request = seq.request
        return Enter(
            sequence=told.number,
            prompt=pack_ids(request.token_ids),
            forced=None if request.forced_output is None else pack_ids(request.forced_output),
            sampling=replace(request.sampling, logit_bias=dict(request.sampling.logit_bias)),
            num_logprobs=request.num_logprobs,
            prompt_logprobs=request.prompt_logprobs,
            constrained=request.constraint is not None,
            pooled=request.output is Output.POOLED_STATES,
            wants_logits=request.return_logits,
        )

    def _admit(self, residence: Residence) -> tuple[_ToldResidence, Admit]:
        told = _ToldResidence(next(self._numbers), residence)
        slots_JP, offsets_P = residence.table.known()
        same = bool((slots_JP == slots_JP[0]).all())
        return told, Admit(
            residence=told.number,
            num_tokens=residence.view.num_tokens,
            slots=[pack_stretches(slots_P) for slots_P in (slots_JP[:1] if same else slots_JP)],
            offsets=pack_repeats(offsets_P),
        )

    def _probes(self, told: _ToldResidence) -> Iterator[Update]:
        probe = told.residence.probe
        if probe is None:
            if told.is_probed:
                told.is_probed = False
                yield EndProbe(told.number)
            return
        told.is_probed = True
        if told.num_probes < len(probe.records):
            yield self._new_probe(told, probe)

    def _new_probe(self, told: _ToldResidence, probe: ProbeState) -> BeginProbe:
        """Only one can be new: each runs before the next is asked for."""
        assert told.num_probes == len(probe.records) - 1, "a probe was missed"
        record, first = probe.records[-1], told.num_borrowed
        assert probe.shared_slots_KN is not None
        told.num_probes, told.num_borrowed = len(probe.records), len(probe.borrowed_N)
        return BeginProbe(
            residence=told.number,
            positions=pack_stretches(record.positions),
            depth=record.probe.depth,
            borrowed=pack_stretches(probe.borrowed_N[first:]),
            shared=[pack_stretches(slots_N[first:]) for slots_N in probe.shared_slots_KN],
        )

    def _item(self, entry: ScheduledSeq, told: _ToldSequence, residence: _ToldResidence, mask: bytes | None) -> Item:
        seq, rows = entry.sequence, entry.rows
        new = seq.token_ids[told.num_tokens :]
        told.num_tokens = len(seq.token_ids)
        slots = entry.residence.own_P[rows.positions]
        assert (slots != NO_SLOT).all(), "a row has nowhere to write"
        return Item(
            sequence=told.number,
            residence=residence.number,
            positions=pack_stretches(rows.positions),
            depths=pack_repeats(rows.depths),
            observed=pack_repeats(rows.observed.astype(np.int64)) if rows.observed.any() else b"",
            slots=pack_stretches(slots),
            tokens=pack_ids(new) if new else b"",
            num_logits=entry.num_logits,
            samples=entry.samples,
            num_scored=entry.num_scored,
            mask=mask,
        )
