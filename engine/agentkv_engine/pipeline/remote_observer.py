"""Looks at rows whose keys lie at several stages: each question goes to the stage of its layer."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.pipeline.messages import Look, Question
from agentkv_engine.pipeline.packing import pack_stretches, unpack_tensor
from agentkv_engine.pipeline.remote_kv import Stages
from agentkv_engine.reuse import Probe, Reading, Reread
from agentkv_engine.runner.rereading import only
from agentkv_engine.scheduler.sequence import ProbeRecord, ProbeState, Residence

Tell = Callable[[Residence], int]
"""Lets the stages know what a sequence holds; its number there."""


class RemoteObserver:
    """Has what `Admission` needs of `Observer`."""

    watches = False  # the stages forget what rows asked once their probe has ended

    def __init__(self, stages: Stages, config: ModelConfig, traced_layers: tuple[int, ...], tell: Tell) -> None:
        self.stages = stages
        self.row_layer_flops = config.flops_per_row_layer
        self.traced_layers = traced_layers
        self.look_depth = config.num_layers
        self.tell = tell

    def record(self, probe: Probe) -> ProbeRecord:
        """See `Observer.record`: the queries stay where they are made."""
        return ProbeRecord(probe, torch.empty(0))

    def observe(self, residence: Residence, probe: ProbeState) -> "RemoteObservation":
        """See `Observer.observe`."""
        return RemoteObservation(self, residence, probe)


class RemoteObservation:
    """Implements `agentkv_engine.reuse.Observation`; valid until the plan is made. Every look waits for its stage, and
    for the steps that were ordered before it."""

    def __init__(self, observer: RemoteObserver, residence: Residence, probe: ProbeState) -> None:
        self._observer = observer
        self._residence = residence
        self._probes = tuple(record.probe for record in probe.records)
        self._flops = 0

    @property
    def probes(self) -> tuple[Probe, ...]:
        """See `Observation.probes`."""
        return self._probes

    @property
    def traced_layers(self) -> tuple[int, ...]:
        """See `Observation.traced_layers`."""
        return self._observer.traced_layers

    @property
    def row_layers(self) -> int:
        """Work of looking so far, in rows through one layer."""
        return -(-self._flops // self._observer.row_layer_flops)

    def attention(self, layer: int, positions: Sequence[int]) -> Tensor:
        """See `Observation.attention`."""
        (seen,) = self._look("attention", layer, positions, shape=(len(positions), self._residence.view.num_tokens))
        return seen

    def most_read(self, layer: int, positions: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """See `Observation.most_read`."""
        seen_RP = self.attention(layer, positions)
        most = pad(seen_RP, (0, max(count - seen_RP.shape[1], 0))).topk(count)
        return most.values, most.indices.clamp(max=seen_RP.shape[1] - 1)

    def reading(self, layer: int, rereads: Sequence[Reread], chosen: Tensor | None = None) -> Reading:
        """See `Observation.reading`."""
        rereads = rereads if chosen is None else only(rereads, chosen.cpu().numpy())
        told = [(_packed(r.positions), list(r.left_out)) for r in rereads]
        since, left_out = self._look("reading", layer, (), told, count=2)
        return Reading(since_then_R=since, by_left_out_R=left_out)

    def value_deviation(self, layer: int, positions: Sequence[int]) -> Tensor:
        """See `Observation.value_deviation`."""
        (seen,) = self._look("value_deviation", layer, positions)
        return seen

    def value_turn(self, layer: int, positions: Sequence[int]) -> Tensor:
        """See `Observation.value_turn`."""
        (seen,) = self._look("value_turn", layer, positions)
        return seen

    def _look(
        self,
        question: Question,
        layer: int,
        positions: Sequence[int],
        rereads: Sequence[tuple[bytes, list[tuple[int, int]]]] = (),
        *,
        count: int = 1,
        shape: tuple[int, ...] = (-1,),
    ) -> tuple[Tensor, ...]:
        """So many tensors of this shape."""
        packed = _packed(positions)
        residence = self._observer.tell(self._residence)
        reply = self._observer.stages.ask(
            layer, lambda number, here: Look(number, residence, question, here, packed, list(rereads))
        )
        self._flops += reply.flops
        with self._observer.stages.taking():
            pairs = zip(reply.tensors, [shape] * count, strict=True)
            return tuple(unpack_tensor(data, torch.float32, *shape) for data, shape in pairs)


def _packed(positions: Sequence[int]) -> bytes:
    return pack_stretches(np.asarray(positions, dtype=np.int64))
