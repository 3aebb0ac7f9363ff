"""One stage: its layers, its part of the pool, and what it does with each order."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from agentkv_engine.attention.backend import choose_backend
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.row_traces import Traces
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.operations import choose_operations
from agentkv_engine.model.random_weights import RandomWeights, random_decoder
from agentkv_engine.model.step import Step
from agentkv_engine.pipeline.device_work import choose_device_work
from agentkv_engine.pipeline.messages import (
    Answer,
    ItemResult,
    Look,
    ReadKV,
    Reply,
    StepOrder,
    StepResult,
    StepTimes,
    Tell,
    WriteKV,
)
from agentkv_engine.pipeline.mirror import Mirror
from agentkv_engine.pipeline.packing import pack_tensor, unpack_stretches, unpack_tensor
from agentkv_engine.pipeline.sender import Later
from agentkv_engine.pipeline.spec import StageSpec
from agentkv_engine.reuse import Reread
from agentkv_engine.runner.forward import choose_forward
from agentkv_engine.runner.inputs import InputBuilder, StepInput
from agentkv_engine.runner.model_runner import results
from agentkv_engine.runner.observer import LiveObservation, Observer
from agentkv_engine.sampling.result import Sampled
from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput, SeqResult

MOST_SENDS = 8
"""Activations that may be on their way to the next stage before this one waits for the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedStep:
    """A step whose inputs are built.

    Attributes:
        items: of all sequences, in the order's order.
        rows: those that reach this stage; None where none does.
        num_arriving, num_leaving: rows that come from the stage before, and that go to the next one.
    """

    number: int
    items: list[ScheduledSeq]
    rows: StepInput | Step | None
    num_arriving: int
    num_leaving: int
    ordered: float
    built: float


class Stage:
    """Loads its layers; then `prepare` is called by the thread that receives orders, everything else by the one that
    computes.

    Args:
        spec: which layers, where.
        send: takes answers for the driver; those that wait for the device are made by a thread of its own.
    """

    def __init__(self, spec: StageSpec, send: Callable[[Answer | Later], None]) -> None:
        self._spec = spec
        self._send = send
        layers, dtype = range(*spec.layers), getattr(torch, spec.dtype)
        self._decoder = _decoder(spec, layers, dtype)
        shape = self._decoder.config
        levels = Levels(spec.levels, shape.num_layers)
        traced = None if spec.traced is None else spec.traced.of_stage(layers)
        self._is_first, self._is_last = layers.start == 0, layers.stop == shape.num_layers
        self._hidden_size = shape.hidden_size
        self._pool = KVPool(
            num_layers=len(layers),
            num_blocks=spec.num_blocks,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=dtype,
            device=spec.device,
            traced=traced,
        )
        backend = choose_backend(shape, self._decoder.rope, dtype, spec.device)
        operations = choose_operations(shape, spec.device)
        self._forward = choose_forward(
            self._decoder,
            pool=self._pool,
            backend=backend,
            operations=operations,
            graph_memory=spec.graph_memory,
        )
        self._work = choose_device_work(spec.device)
        reads_last = not self._is_last or (traced is not None and len(layers) - 1 in traced.layers)
        self._inputs = InputBuilder(levels.of_stage(layers), most_deepened=0, reads_last_layer=reads_last)
        self._observer = Observer(
            pool=self._pool,
            decoder=self._decoder,
            levels=levels.of_stage(layers),
            backend=backend,
            operations=operations,
        )
        self._mirror = Mirror(
            layers, levels, query_shape=(shape.num_heads, shape.head_dim), dtype=dtype, device=spec.device
        )
        self._sends: deque[tuple[dist.Work, Tensor]] = deque()

    @torch.inference_mode()
    def prepare(self, order: Any) -> Any:
        """Take in what the order tells of sequences; a step's inputs are built while the one before runs."""
        ordered = time.monotonic()
        if isinstance(order, StepOrder | Tell):
            self._mirror.take(order.updates)
        if not isinstance(order, StepOrder):
            return order
        items = self._mirror.scheduled(order)
        ready, num_arriving, num_leaving = None, sum(len(item.rows) for item in items), 0
        if num_arriving:
            rows = self._inputs.build(SchedulerOutput(scheduled=tuple(items)), lambda _slots: None)
            num_leaving = rows.attending[-1]
            ready = self._forward.ready(rows)
        return PreparedStep(
            number=order.number,
            items=items,
            rows=ready,
            num_arriving=0 if self._is_first else num_arriving,
            num_leaving=0 if self._is_last else num_leaving,
            ordered=ordered,
            built=time.monotonic(),
        )

    @torch.inference_mode()
    def run(self, prepared: Any) -> None:
        """Do what was ordered, and answer."""
        match prepared:
            case PreparedStep():
                self._step(prepared)
            case Look():
                self._look(prepared)
            case ReadKV():
                self._read(prepared)
            case WriteKV():
                self._write(prepared)

    def _step(self, prepared: PreparedStep) -> None:
        x = self._receive(prepared.num_arriving) if prepared.num_arriving else None
        arrived = self._work.mark()
        if prepared.rows is not None and self._is_last:
            self._finish(prepared, self._forward(prepared.rows, x))
        elif prepared.rows is not None:
            leaving = self._forward.passed_on(prepared.rows, x)
            if prepared.num_leaving:
                self._pass_on(leaving[: prepared.num_leaving])
        elif self._is_last:
            nothing = [ItemResult(None, [], b"", b"") for _ in prepared.items]
            self._send(StepResult(prepared.number, nothing, time.monotonic()))
        if self._spec.tell_times:
            self._send(partial(self._times, prepared, arrived, self._work.mark()))

    def _times(self, prepared: PreparedStep, arrived: Any, done: Any) -> StepTimes:
        reached = (self._work.time_of(arrived), self._work.time_of(done))
        return StepTimes(prepared.number, self._spec.stage, prepared.ordered, prepared.built, *reached)

    def _finish(self, prepared: PreparedStep, logits: Tensor) -> None:
        """Let tokens be sampled and sent while the next step is launched: nobody needs them here before the driver has
        them."""
        states = [item.sequence.states for item in prepared.items]
        totals = [None if each is None else each.take_sum() for each in states]
        self._send(partial(self._told, prepared, logits, totals, self._work.mark()))

    def _told(
        self, prepared: PreparedStep, logits: Tensor, totals: Sequence[Tensor | None], computed: Any
    ) -> StepResult:
        with self._work.behind(computed):
            found = results(prepared.items, logits)
            told = [self._result(*each) for each in zip(prepared.items, found, totals, strict=True)]
        return StepResult(prepared.number, told, time.monotonic())

    @staticmethod
    def _result(item: ScheduledSeq, computed: SeqResult, total: Tensor | None) -> ItemResult:
        assert computed.sampled is None or isinstance(computed.sampled, Sampled), "the driver asks constraints"
        return ItemResult(
            sampled=computed.sampled,
            scored=list(computed.scored),
            logits=pack_tensor(computed.logits) if item.sequence.request.return_logits else b"",
            pooled=b"" if total is None else pack_tensor(total),
        )

    def _receive(self, num_rows: int) -> Tensor:
        """What the stage before passes on. A GPU's host does not wait. The device receives between two steps: a receive
        beside one would hold processors that the step needs for as long as the other stage computes."""
        x = torch.empty(num_rows, self._hidden_size, dtype=self._decoder.dtype, device=self._spec.device)
        work = dist.irecv(x.view(torch.uint8), src=self._spec.stage - 1)
        assert work is not None
        work.wait()
        return x

    def _pass_on(self, x: Tensor) -> None:
        """Begin to send; what is being sent is held until it has left."""
        x = x.contiguous()
        while self._sends and (len(self._sends) >= MOST_SENDS or self._sends[0][0].is_completed()):
            self._sends.popleft()[0].wait()
        work = dist.isend(x.view(torch.uint8), dst=self._spec.stage + 1)
        assert work is not None
        self._sends.append((work, x))

    def _look(self, order: Look) -> None:
        residence = self._mirror.residence(order.residence)
        assert residence.probe is not None, "nothing has been probed"
        observation = LiveObservation(self._observer, residence, residence.probe)
        if order.question == "reading":
            rereads = [
                Reread(positions=unpack_stretches(packed).tolist(), left_out=tuple(out))
                for packed, out in order.rereads
            ]
            reading = observation.reading(order.layer, rereads)
            tensors = [reading.since_then_R, reading.by_left_out_R]
        else:
            ask: Callable[[int, list[int]], Tensor] = getattr(observation, order.question)
            tensors = [ask(order.layer, unpack_stretches(order.positions).tolist())]
        self._send(Reply(order.number, [pack_tensor(tensor.float()) for tensor in tensors], observation.flops))

    def _read(self, order: ReadKV) -> None:
        slots = torch.from_numpy(unpack_stretches(order.slots)).to(self._spec.device)
        if order.traces:
            assert self._pool.traces is not None
            tensors = self._pool.traces.read(order.layer, slots).tensors
        else:
            tensors = self._pool.read(order.layer, slots)
        self._send(Reply(order.number, [pack_tensor(tensor) for tensor in tensors]))

    def _write(self, order: WriteKV) -> None:
        slots = torch.from_numpy(unpack_stretches(order.slots)).to(self._spec.device)
        device = self._spec.device
        if order.traces:
            assert self._pool.traces is not None
            here = self._pool.traces.read(order.layer, slots).tensors
            given = [
                unpack_tensor(data, like.dtype, *like.shape) for data, like in zip(order.tensors, here, strict=True)
            ]
            self._pool.traces.restore(order.layer, slots, Traces(*(tensor.to(device) for tensor in given)))
            return
        k, v = (unpack_tensor(data, self._pool.dtype, len(slots), *self._pool.head_shape) for data in order.tensors)
        self._pool.write(order.layer, slots, k.to(device), v.to(device))


def _decoder(spec: StageSpec, layers: range, dtype: torch.dtype) -> Decoder:
    weights = spec.weights
    if isinstance(weights, RandomWeights):
        return random_decoder(weights.config, dtype=dtype, device=spec.device, seed=weights.seed, layers=layers)
    return load_decoder(
        Path(weights),
        dtype=dtype,
        device=spec.device,
        context_length=spec.context_length,
        quantization=spec.quantization,
        layers=layers,
    )
