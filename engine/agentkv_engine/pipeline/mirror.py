"""A stage's own picture of the driver's sequences, kept up to date by its messages.

Layers are numbered from 0 at each stage, and depths are less by the layers before it (see `Levels.of_stage`): a row of
depth d behind b layers is a row of depth d - b here, and rows that end before never come.

Shapes: N rows, J slot lists.
"""

from collections.abc import Sequence as Ordered

import numpy as np
import torch
from torch import Tensor

from agentkv_engine.cache.block_pool import BlockPool, LeastRecentlyUsed
from agentkv_engine.cache.key_table import NO_SLOT, Keys, KeyTable
from agentkv_engine.cache.levels import Levels
from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.model.pooled import PooledStates
from agentkv_engine.pipeline.messages import Admit, BeginProbe, Drop, EndProbe, Enter, Forget, Item, StepOrder, Update
from agentkv_engine.pipeline.packing import unpack_ids, unpack_repeats, unpack_stretches
from agentkv_engine.request import Request
from agentkv_engine.reuse import Probe, ReuseView
from agentkv_engine.sampling.state import SamplingState
from agentkv_engine.scheduler.output import ScheduledSeq
from agentkv_engine.scheduler.sequence import PrivateSlots, ProbeRecord, ProbeState, Residence, Rows, Sequence


class SentMask:
    """A constraint that the driver asks; implements `TokenConstraint`."""

    is_finished = False

    def __init__(self) -> None:
        self.mask = b""

    def fill_bitmask(self, bitmask_BW: Tensor, row: int) -> None:
        """See `TokenConstraint.fill_bitmask`."""
        bitmask_BW[row] = torch.frombuffer(bytearray(self.mask), dtype=torch.int32)

    def accept(self, token_id: int) -> None:
        """See `TokenConstraint.accept`: the driver's does."""


class Mirror:
    """The sequences of one stage.

    Args:
        layers: the stage's, of the model's.
        levels: the model's.
        query_shape: heads and head dimension.
        dtype, device: of recorded queries.
    """

    def __init__(
        self, layers: range, levels: Levels, *, query_shape: tuple[int, int], dtype: torch.dtype, device: str
    ) -> None:
        self._layers = layers
        self._full_depth = levels.num_layers - layers.start
        self._levels = levels.of_stage(layers)
        self._query_shape = query_shape
        self._dtype = dtype
        self._device = device
        self._nothing = BlockPool(0, LeastRecentlyUsed())  # slots are the driver's to give
        self._sequences: dict[int, Sequence] = {}
        self._residences: dict[int, Residence] = {}

    def take(self, updates: Ordered[Update]) -> None:
        """What has changed."""
        for update in updates:
            match update:
                case Enter():
                    self._sequences[update.sequence] = _sequence(update)
                case Forget():
                    del self._sequences[update.sequence]
                case Admit():
                    self._residences[update.residence] = self._residence(update)
                case Drop():
                    del self._residences[update.residence]
                case BeginProbe():
                    self._begin_probe(update)
                case EndProbe():
                    self._end_probe(self._residences[update.residence])

    def residence(self, number: int) -> Residence:
        """What a sequence holds."""
        return self._residences[number]

    def scheduled(self, order: StepOrder) -> list[ScheduledSeq]:
        """A step's rows that reach this stage; items keep their places, some may be without rows."""
        decodes, told = order.decodes, iter(order.items)
        columns = (decodes.sequences, decodes.positions, decodes.slots, decodes.tokens)
        rows = zip(*map(unpack_ids, columns), strict=True)
        found = {place: self._decoding(*row) for place, row in zip(unpack_ids(decodes.places), rows, strict=True)}
        everyone = range(len(found) + len(order.items))
        return [found[place] if place in found else self._scheduled(next(told)) for place in everyone]

    def _decoding(self, sequence: int, position: int, slot: int, token: int) -> ScheduledSeq:
        seq = self._sequences[sequence]
        residence = seq.held
        seq.token_ids.append(token)
        residence.make_room(position + 1)
        residence.own_P[position] = slot
        residence.table.write_one(position, slot)
        return ScheduledSeq(
            sequence=seq,
            rows=Rows.one(position, self._full_depth),
            num_logits=1,
            samples=True,
            residence=residence,
            num_computed=0,
            is_last=False,
        )

    def _scheduled(self, item: Item) -> ScheduledSeq:
        seq, residence = self._sequences[item.sequence], self._residences[item.residence]
        seq.residence = residence
        seq.token_ids += unpack_ids(item.tokens)
        positions, slots = unpack_stretches(item.positions), unpack_stretches(item.slots)
        depths = unpack_repeats(item.depths) - self._layers.start
        observed = unpack_repeats(item.observed).astype(bool) if item.observed else np.zeros(len(positions), dtype=bool)
        residence.own_slots(positions)  # makes room
        residence.own_P[positions] = slots
        residence.table.write(positions, self._levels.num_lists(depths), slots)
        if isinstance(seq.sampling.constraint, SentMask) and item.mask is not None:
            seq.sampling.constraint.mask = item.mask
        arrives = depths >= 0
        rows = Rows(positions[arrives], depths[arrives], observed[arrives])
        return ScheduledSeq(
            sequence=seq,
            rows=rows,
            num_logits=item.num_logits,
            samples=item.samples,
            num_scored=item.num_scored,
            residence=residence,
            record=residence.probe.records[-1] if residence.probe is not None else None,
            num_computed=0,
            is_last=False,
        )

    def _residence(self, update: Admit) -> Residence:
        slots = [unpack_stretches(packed) for packed in update.slots]
        size = len(slots[0])
        lists = slots if len(slots) == len(self._levels) else slots * len(self._levels)
        table = KeyTable(len(self._levels), size + BLOCK_SIZE)
        table.place(0, Keys(np.stack(lists), unpack_repeats(update.offsets)))
        view = ReuseView(num_tokens=update.num_tokens, num_layers=len(self._layers), num_prefix=0, spans=())
        return Residence(
            table=table,
            private=PrivateSlots(self._nothing),
            own_P=np.full(size + BLOCK_SIZE, NO_SLOT, dtype=np.int64),
            shared_blocks=[],
            view=view,
            num_exact=0,
            reused=(),
            depths_P=np.empty(0, dtype=np.int64),
        )

    def _begin_probe(self, update: BeginProbe) -> None:
        residence = self._residences[update.residence]
        state = residence.probe = residence.probe or ProbeState(PrivateSlots(self._nothing))
        positions = unpack_stretches(update.positions)
        depth = update.depth - self._layers.start
        shape = (min(max(depth, 0), len(self._layers)), len(positions), *self._query_shape)
        queries = torch.zeros(shape, dtype=self._dtype, device=self._device)
        record = ProbeRecord(Probe(positions=tuple(positions.tolist()), depth=depth), queries)
        state.begin(record, unpack_stretches(update.borrowed), np.stack([unpack_stretches(s) for s in update.shared]))

    @staticmethod
    def _end_probe(residence: Residence) -> None:
        probe = residence.probe
        assert probe is not None
        assert probe.shared_slots_KN is not None
        residence.table.restore(probe.borrowed_N, probe.shared_slots_KN)
        residence.own_P[probe.borrowed_N] = NO_SLOT
        residence.probe = None


def _sequence(update: Enter) -> Sequence:
    prompt = tuple(unpack_ids(update.prompt))
    request = Request(
        request_id=str(update.sequence),
        token_ids=prompt,
        sampling=update.sampling,
        forced_output=None if update.forced is None else tuple(unpack_ids(update.forced)),
        return_logits=update.wants_logits,
        num_logprobs=update.num_logprobs,
        prompt_logprobs=update.prompt_logprobs,
    )
    constraint = SentMask() if update.constrained else None
    return Sequence(
        request=request,
        arrival=0,
        sampling=SamplingState(update.sampling, prompt, num_logprobs=update.num_logprobs, constraint=constraint),
        token_ids=list(prompt),
        spans=(),
        states=PooledStates() if update.pooled else None,
    )
