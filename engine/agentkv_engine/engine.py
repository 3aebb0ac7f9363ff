"""The engine: schedule, run, update. Single-threaded; callers of several threads serialise their calls."""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from agentkv_engine.cache.block_pool import BlockPool, EvictionPolicy, LeastRecentlyUsed
from agentkv_engine.cache.host_memory import HostMemory, HostResident
from agentkv_engine.cache.kv_pool import bytes_per_block
from agentkv_engine.cache.levels import Levels
from agentkv_engine.cache.prefix_index import PrefixIndex
from agentkv_engine.cache.residents import Residents, ResidentTensors
from agentkv_engine.cache.row_traces import TracedShape
from agentkv_engine.config import BLOCK_SIZE, EngineConfig
from agentkv_engine.errors import OutOfMemory, PipelineRefused, RequestRefused, RunnerLost, UnknownHandle
from agentkv_engine.memory_errors import is_out_of_memory, memory_needed, out_of_memory
from agentkv_engine.model.checkpoint import empty_decoder, load_decoder
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.model_config import ModelConfig
from agentkv_engine.model.pooled import PooledStates
from agentkv_engine.placement import check_device, dtype_of
from agentkv_engine.request import FinishReason, Output, Request, ReuseMode, StepOutput
from agentkv_engine.request_checks import check_request
from agentkv_engine.reuse import Resident
from agentkv_engine.runner.model_runner import ModelRunner
from agentkv_engine.runner.runner import Pending, PoolPlan, RemoteModel, Runner
from agentkv_engine.sampling.state import SamplingState
from agentkv_engine.scheduler.admission import Admission
from agentkv_engine.scheduler.budget import BudgetPolicy, FixedBudget
from agentkv_engine.scheduler.output import SchedulerOutput
from agentkv_engine.scheduler.scheduler import Scheduler
from agentkv_engine.scheduler.sequence import Sequence
from agentkv_engine.scheduler.token_throttling import MIN_PREFILL, TokenThrottling

__all__ = ["Engine", "EvictionPolicy", "HostResident", "LeastRecentlyUsed", "MemoryStats", "ResidentTensors"]


READY_SECONDS = 0.05
"""How long a step waits for a runner that is not ready: calls between two steps are taken meanwhile."""

STEP_REMEDY = "ask again; if it comes again, lower --kv-memory or --max-rows-per-step"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    """How the pool's blocks are held. A block that several keepers share is counted once.

    Attributes:
        num_blocks: all blocks.
        free: held by nobody.
        kept: held by residents or the prefix index.
        pinned: held by running sequences.
        block_bytes: bytes of one block, all layers.
    """

    num_blocks: int
    free: int
    kept: int
    pinned: int
    block_bytes: int

    @property
    def kept_bytes(self) -> int:
        """Bytes of KV that is kept."""
        return self.kept * self.block_bytes


class Engine:
    """Serves requests over one model and one pool of KV.

    Args:
        decoder: the model, on `config.device`, or in other processes.
        config: see `EngineConfig`.
        revision: names the weights; stands at the root of every prefix key.
        eviction: the order in which kept KV goes when blocks are wanted.
        on_evict: called with the handle of a resident that is about to be evicted (not with those that are released);
            it can still be copied out (`offload`, `export`).
        on_missing: called with handles of residents that a request wants to read now and that are not in the pool: it
            may bring them back (`restore`).
        budget: rows of a step; None takes what the settings say.
    """

    def __init__(
        self,
        decoder: Decoder | RemoteModel,
        config: EngineConfig,
        *,
        revision: str = "",
        eviction: EvictionPolicy | None = None,
        on_evict: Callable[[int], None] = lambda _handle: None,
        on_missing: Callable[[Ordered[int]], None] = lambda _handles: None,
        budget: BudgetPolicy | None = None,
    ) -> None:
        shape = decoder.config
        dtype = decoder.dtype
        levels = Levels(config.levels, shape.num_layers)
        traced = _traced_shape(config, shape)
        block_bytes = bytes_per_block(shape.num_layers, shape.num_kv_heads, shape.head_dim, dtype, traced=traced)
        num_blocks = config.kv_memory // block_bytes
        if num_blocks < 1:
            raise RequestRefused(f"kv_memory of {config.kv_memory} bytes holds no block: give at least {block_bytes}")
        self.config = config
        self.model_config = shape
        self.context_length = min(config.context_length or shape.context_length, shape.context_length)
        self._block_bytes = block_bytes
        self._traced_layers = traced.layers if traced is not None else ()
        plan = PoolPlan(levels=levels, traced=traced, num_blocks=num_blocks)
        with memory_needed("for the KV pool", "lower --kv-memory, or take a device with more memory"):
            self._pool = BlockPool(num_blocks, eviction or LeastRecentlyUsed())
            self._runner = runner = _start(decoder, config, plan)
        self._under_way: deque[tuple[SchedulerOutput, Pending]] = deque()
        self._host = _host_memory(runner, config.host_kv_memory)
        self._prefixes = PrefixIndex(self._pool, f"{revision}/{dtype}")
        self._residents = Residents(self._pool, runner.tensors, levels, on_evict, on_missing, self._host)
        admission = Admission(self._pool, self._prefixes, self._residents, levels, runner.observer)
        self._scheduler = Scheduler(
            self._pool,
            admission,
            levels,
            budget or _budget(config, runner.max_under_way),
            max_sequences=config.max_sequences,
            limit=self.max_tokens,
        )
        self._arrivals = 0

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        config: EngineConfig | None = None,
        *,
        eviction: EvictionPolicy | None = None,
        on_evict: Callable[[int], None] = lambda _handle: None,
        on_missing: Callable[[Ordered[int]], None] = lambda _handles: None,
    ) -> "Engine":
        """Load a Hugging Face directory (config.json, safetensors).

        Raises:
            CheckpointError: what is wrong with the directory (see `agentkv_engine.errors`).
            OutOfMemory: weights, or the pool, find no room.
            DeviceUnavailable: there is no such device here.
            PipelineRefused: the stages that are asked for can't be made.
            RunnerLost: they could not be started.
        """
        config = config or EngineConfig()
        revision = f"{directory.resolve()}/{config.quantization}"
        model = _load(directory, config)
        return cls(model, config, revision=revision, eviction=eviction, on_evict=on_evict, on_missing=on_missing)

    @staticmethod
    def check_supported(directory: Path, config: EngineConfig) -> None:
        """That a model can be run, by its config.json alone: before its weights are there.

        Raises:
            CheckpointError: why not.
        """
        empty_decoder(ModelConfig.from_directory(directory, context_length=config.context_length))

    @property
    def max_tokens(self) -> int:
        """Most tokens of a sequence: what the model was made for, or what the pool can hold."""
        return min(self.context_length, self._pool.num_blocks * BLOCK_SIZE)

    @property
    def traced_layers(self) -> tuple[int, ...]:
        """Layers in which rows leave traces (see `EngineConfig.trace_layers`)."""
        return self._traced_layers

    @property
    def device_type(self) -> str:
        """What it runs on: `cpu` or `cuda`."""
        return torch.device(self.config.device).type

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._under_way) or self._scheduler.has_work

    @property
    def is_ready(self) -> bool:
        """Whether steps can run; may be asked by any thread. A pipeline is not while its stages are started again."""
        return self._runner.is_ready

    @property
    def num_preemptions(self) -> int:
        """How often a running request had to give way."""
        return self._scheduler.num_preemptions

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestRefused: it can never run; the message says what to change.
        """
        if self._scheduler.find(request.request_id) is not None:
            raise RequestRefused(f"request id {request.request_id!r} is in use: give each request its own")
        check_request(
            request,
            vocab_size=self.model_config.vocab_size,
            context_length=self.context_length,
            max_tokens=self.max_tokens,
            residents=self._residents,
        )
        sampling = SamplingState(
            request.sampling, request.token_ids, num_logprobs=request.num_logprobs, constraint=request.constraint
        )
        reads = request.mode is ReuseMode.SCREENED and not request.computes_all
        self._scheduler.add(
            Sequence(
                request=request,
                arrival=self._arrivals,
                sampling=sampling,
                token_ids=list(request.token_ids),
                spans=request.spans if reads else (),
                reuse_given_up=request.computes_all,
                prompt_key=_prompt_key(request),
                states=PooledStates() if request.output is Output.POOLED_STATES else None,
            )
        )
        self._arrivals += 1

    def abort(self, request_id: str) -> None:
        """Forget a request at any time and free what it holds; unknown ids are ignored (it may just have ended)."""
        seq = self._scheduler.find(request_id)
        if seq is not None:
            self._scheduler.abort(seq)

    def finish(self, request_id: str) -> None:
        """End a request now, as if its last token had been a stop token; its KV can be kept until the next step."""
        self._scheduler.finish(self._find(request_id), FinishReason.STOP)

    def step(self) -> list[StepOutput]:
        """Run one step; returns what it brought, request by request. Others are started where the runner takes them."""
        try:
            if self._runner.wait_until_ready(READY_SECONDS):
                self._submit()
            if not self._under_way:
                return self._scheduler.take_failed()
            schedule, pending = self._under_way[0]
            if len(self._under_way) < self._runner.max_under_way and not pending.arrives():
                return self._scheduler.take_failed()  # more may be submitted by now
            self._under_way.popleft()
            expected = self._prepare_next(schedule)
            outputs = self._scheduler.update(schedule, pending.result())
            if expected is not None and self._scheduler.take_up(expected):
                self._start(expected)
            return outputs
        except RunnerLost as error:
            return self._begin_anew(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = out_of_memory(error, "in a step", STEP_REMEDY)
        return self._give_way(failure)  # out here the traceback is gone, and with it what the step held

    def drain(self) -> None:
        """Wait for steps that are under way though nobody wants them any more, and give back what they held."""
        while self._under_way:
            self.step()
        self.release_finished()

    def interrupt(self) -> None:
        """Let `step` return without waiting for results where another step could be started: there is something new to
        do. May be called by any thread."""
        self._runner.interrupt()

    def use_budget(self, budget: BudgetPolicy) -> None:
        """Limit steps by another policy from now on."""
        self._scheduler.use_budget(budget)

    def release_finished(self) -> None:
        """What the last step left for when its tokens are out, where no step follows; `step` does it too: prompts go
        into the prefix index, and what requests that ended hold is given back."""
        self._scheduler.release_finished()

    def keep(self, request_id: str, start: int, end: int) -> Resident:
        """Keep the KV of positions [start, end) of a request; possible from the step that computed them until the step
        after its last output. Nothing is copied; rows that were only reused keep pointing to where they lie.

        Raises:
            UnknownHandle: no such request is in the engine.
            RequestRefused: positions that have no KV (yet).
        """
        seq = self._find(request_id)
        if seq.residence is None or not 0 <= start < end <= seq.num_computed:
            raise RequestRefused(
                f"{request_id} has KV of positions 0..{seq.num_computed}, not of {start}..{end}: "
                "keep a part that is computed"
            )
        exact = end <= seq.residence.exact_until
        keys = seq.residence.table.copy_out(start, end)
        token_ids = tuple(seq.token_ids[start:end])
        return self._residents.keep(token_ids, keys, start, exact=exact, hops=0 if exact else seq.residence.hops)

    def release(self, handle: int) -> None:
        """Give a resident up; requests that read it go on. Raises UnknownHandle."""
        self._residents.release(handle)

    def export(self, handle: int) -> ResidentTensors:
        """Copy a resident out of the pool, for a lower tier. Raises UnknownHandle."""
        return self._residents.export(handle)

    def load(self, tensors: ResidentTensors) -> Resident:
        """Bring an exported resident back. Raises RequestRefused where there is no room."""
        self.release_finished()
        return self._residents.load(tensors)

    def offload_bytes(self, handle: int) -> int:
        """Bytes of host memory that a resident takes. Raises UnknownHandle."""
        return self._residents.offload_bytes(handle)

    def offload(self, handle: int) -> HostResident | None:
        """Copy a resident to host memory, with what its rows left in traced layers; None where there is no room, or its
        KV is lost. It stays in the pool. Raises UnknownHandle."""
        return self._residents.offload(handle)

    def restore(self, items: Ordered[HostResident]) -> tuple[Resident, ...]:
        """Bring residents that left the pool back into it, under the handles that they had; all, or where the pool has
        no room, none. Their host memory stays theirs. On a GPU the copies run beside the next steps, whose layers wait
        for them one by one."""
        return self._residents.restore(items)

    def discard(self, item: HostResident) -> None:
        """Free the host memory of a resident."""
        self._residents.discard(item)

    def check_host(self, held: Ordered[HostResident]) -> None:
        """Integrity: these residents, and no others, hold host memory; raises AssertionError."""
        if self._host is not None:
            self._host.check(held)

    def resident_bytes(self, handle: int) -> int:
        """Bytes of the blocks behind a resident, shared ones included. Raises UnknownHandle."""
        return self._residents.num_bytes(handle)

    def memory(self) -> MemoryStats:
        """How the pool is held now."""
        return MemoryStats(
            num_blocks=self._pool.num_blocks,
            free=self._pool.num_free,
            kept=self._pool.num_kept,
            pinned=self._pool.num_blocks - self._pool.num_unpinned,
            block_bytes=self._block_bytes,
        )

    def close(self) -> None:
        """End what runs in other processes; nothing can be asked any more. Safe to call twice."""
        self._runner.close()

    def check(self) -> None:
        """Integrity of all holds; raises AssertionError. Cheap enough for tests after every step."""
        self._pool.check()

    def _submit(self) -> None:
        while len(self._under_way) < self._runner.max_under_way:
            schedule = self._scheduler.schedule()
            if not schedule.scheduled:
                return
            self._start(schedule)

    def _start(self, schedule: SchedulerOutput) -> None:
        self._under_way.append((schedule, self._runner.submit(schedule, self._pool.assert_writable)))

    def _prepare_next(self, schedule: SchedulerOutput) -> SchedulerOutput | None:
        """While a step of decodes runs, get ready for the one that follows if nobody ends and nobody comes."""
        if not self._runner.prepares or self._under_way:
            return None
        expected = self._scheduler.expect(schedule)
        if expected is None or not self._runner.prepare(expected, self._pool.assert_writable):
            return None
        return expected

    def _give_way(self, failure: OutOfMemory) -> list[StepOutput]:
        """A step found no memory: what had begun ends with an error, and what is kept stays; what waits goes on."""
        self._scheduler.fail_begun(failure)
        while self._under_way:  # their results are taken in, for nobody: a runner counts on it
            _, pending = self._under_way.popleft()
            with suppress(RuntimeError, MemoryError, RunnerLost):  # `wait_until_ready` tells of a loss
                pending.result()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._scheduler.take_failed()

    def _begin_anew(self, error: RunnerLost) -> list[StepOutput]:
        """All KV is gone: what had begun ends with the error, what waits goes on when the runner is back."""
        self._under_way.clear()
        self._scheduler.fail_begun(error)
        self._prefixes.drop_all()
        self._residents.drop_all()
        return self._scheduler.take_failed()

    def _find(self, request_id: str) -> Sequence:
        seq = self._scheduler.find(request_id)
        if seq is None:
            raise UnknownHandle(f"no request {request_id!r} is in the engine: it ended, was aborted, or never came")
        return seq


def _load(directory: Path, config: EngineConfig) -> Decoder | RemoteModel:
    if config.pipeline is not None:
        try:
            from agentkv_engine.pipeline.model import PipelineModel  # noqa: PLC0415 (needs pyzmq and msgspec)
        except ModuleNotFoundError as error:
            raise PipelineRefused(f"a pipeline needs {error.name}: pip install 'agentkv[pipeline]'") from None
        return PipelineModel(directory, config)
    check_device(config)
    with memory_needed("for the weights", "take a smaller model, or a device with more memory"):
        return load_decoder(
            directory,
            dtype=dtype_of(config),
            device=config.device,
            context_length=config.context_length,
            quantization=config.quantization,
        )


def _start(model: Decoder | RemoteModel, config: EngineConfig, plan: PoolPlan) -> Runner:
    return ModelRunner.start(model, config, plan) if isinstance(model, Decoder) else model.start(config, plan)


def _budget(config: EngineConfig, num_stages: int) -> BudgetPolicy:
    if config.budget == "fixed":
        return FixedBudget(config.max_rows_per_step)
    most = config.max_rows_per_step
    return TokenThrottling(num_stages=num_stages, max_prefill=most, min_prefill=min(MIN_PREFILL, most))


def _host_memory(runner: Runner, num_bytes: int) -> HostMemory | None:
    if num_bytes == 0:
        return None
    if not isinstance(runner, ModelRunner):
        raise RequestRefused("host_kv_memory needs the model in one process: leave it out with a pipeline")
    try:
        return HostMemory(runner.tensors, num_bytes)
    except ValueError as error:
        raise RequestRefused(str(error)) from None


def _traced_shape(config: EngineConfig, shape: ModelConfig) -> TracedShape | None:
    layers = tuple(sorted({layer for layer in config.trace_layers if layer < shape.num_layers}))
    if not layers:
        return None
    return TracedShape(layers=layers, num_heads=shape.num_heads, head_dim=shape.head_dim, hidden_size=shape.hidden_size)


def _prompt_key(request: Request) -> int | None:
    """Only exact requests read the whole of what another has just computed, and nothing else."""
    if request.mode is not ReuseMode.EXACT or request.computes_all:
        return None
    return hash((request.tenant, request.token_ids))
