"""Random mixes of requests, spans, offsets, depths, probes, aborts, preemptions and evictions.

After every step: reference counts hold (`Engine.check`) and no shared slot was written (the engine asserts it, and what
was kept is compared with what was exported then). At every answer: the logits are those of the dense oracle over the
very keys that were read. At the end: everything was answered, nothing is pinned.
"""

import random
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine, ResidentTensors
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.rope import inverse, rotate
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_engine.reuse import PlacedSpan, Probe, Resident
from agentkv_engine.scheduler.sequence import Sequence
from dense_oracle import DenseKV, DenseOracle
from engine_driver import ALL_TRACED, FixedDrafts, FixedPlan, block_bytes_of, prompt_of

TENANTS = ("ann", "bob")
TEXTS = [prompt_of(length, seed=900 + length) for length in (24, 37, 50)]


@dataclass(slots=True)
class Pending:
    """A request under way: what it read when it was last admitted, and what it has given."""

    request: Request
    keep: tuple[int, int] | None
    reused: list[tuple[int, DenseKV]] = field(default_factory=list)
    sequence: Sequence | None = None
    token_ids: tuple[int, ...] = ()
    last_logits: torch.Tensor | None = None


@dataclass(slots=True)
class Kept:
    """A resident with its tenant and what was exported when it was kept."""

    tenant: str
    resident: Resident
    snapshot: ResidentTensors


PIECES = ("text", "fresh", "segment", "segment", "segment", "again")


class Schedules(RuleBasedStateMachine):
    """See the module's docstring."""

    decoder: Decoder

    @initialize(
        num_blocks=st.sampled_from([14, 24, 100]),
        chunk=st.sampled_from([5, 24, 200]),
        levels=st.sampled_from([None, (1, 2, 3), (2, 3)]),
    )
    def start(self, num_blocks: int, chunk: int, levels: tuple[int, ...] | None) -> None:
        self.evicted: list[int] = []
        self.engine = Engine(
            self.decoder,
            EngineConfig(
                kv_memory=num_blocks * block_bytes_of(self.decoder),
                max_rows_per_step=chunk,
                max_sequences=4,
                levels=levels,
                trace_layers=ALL_TRACED,
            ),
            on_evict=self.evicted.append,
        )
        self.oracle = DenseOracle(self.decoder)
        self.pending: dict[str, Pending] = {}
        self.kept: list[Kept] = []
        self.prompts: dict[str, list[tuple[int, ...]]] = {tenant: [] for tenant in TENANTS}
        self.counter = 0
        self._spy_on_admissions()
        for tenant in TENANTS:  # something to read from the start
            self.add([("text", 2), ("fresh", 9)], ReuseMode.OFF, tenant, 0, False, 1, False, (0, 60))
        self.step()

    def _spy_on_admissions(self) -> None:
        admission = self.engine._scheduler._admission
        admit = admission.admit

        def spy(seq: Sequence) -> bool:
            admitted = admit(seq)
            if admitted:
                pending = self.pending[seq.request_id]
                pending.sequence, pending.reused = seq, self._keys_read(seq)
            return admitted

        admission.admit = spy

    def _keys_read(self, seq: Sequence) -> list[tuple[int, DenseKV]]:
        """Un-rotated keys of every position that has some at admission, one entry a position."""
        engine, table = self.engine, seq.held.table
        read = []
        for position in range(len(seq.token_ids)):
            kv = DenseKV([], [])
            for layer in range(self.decoder.config.num_layers):
                slot_list = engine._scheduler._levels.list_of_layer(layer)
                positions, slots, offsets = table.readable(slot_list, len(seq.token_ids))
                at = int((positions == position).nonzero()[0][0]) if position in positions else None
                if at is None:
                    break
                k, v = engine._runner.tensors.read(layer, torch.tensor([slots[at]]))
                home = torch.tensor([position - int(offsets[at])])
                kv.keys.append(rotate(k, inverse(self.decoder.rope.by_offsets(home))))
                kv.values.append(v)
            if kv.keys:
                read.append((position, kv))
        return read

    @rule(seeds=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=4), times=st.integers(0, 6))
    def add_some_and_run(self, seeds: list[int], times: int) -> None:
        for seed in seeds:
            draw = random.Random(seed)
            self.add(
                parts=[(draw.choice(PIECES), draw.randrange(50)) for _ in range(draw.randint(1, 4))],
                mode=draw.choice([*ReuseMode, ReuseMode.SCREENED, ReuseMode.SCREENED]),
                tenant=draw.choice(TENANTS),
                depth_seed=draw.randrange(1000),
                with_probe=draw.random() < 0.5,
                max_tokens=draw.randint(1, 24),
                forced=draw.random() < 0.5,
                keep=None if draw.random() < 0.2 else (draw.randrange(60), draw.randint(1, 60)),
            )
        for _ in range(times):
            self.step()

    def add(self, parts, mode, tenant, depth_seed, with_probe, max_tokens, forced, keep) -> None:
        token_ids: tuple[int, ...] = ()
        spans: list[PlacedSpan] = []
        for kind, value in parts:
            own = [kept for kept in self.kept if kept.tenant == tenant and kept.resident.handle not in self.evicted]
            if kind == "text":
                token_ids += TEXTS[value % len(TEXTS)]
            elif kind == "again" and not token_ids and self.prompts[tenant]:
                token_ids += self.prompts[tenant][value % len(self.prompts[tenant])]
            elif kind == "fresh" or not own:
                token_ids += prompt_of(1 + value % 30, seed=value + 7 * len(token_ids))
            else:
                resident = own[value % len(own)].resident
                start = len(token_ids)
                token_ids += resident.token_ids
                spans.append(
                    PlacedSpan(start=start, end=len(token_ids), handle=resident.handle, num_gone=1, hops=resident.hops)
                )
        size = len(token_ids)
        if size + max_tokens + 1 > self.engine.max_tokens:
            return
        generator = torch.Generator().manual_seed(depth_seed)
        drawn = torch.randint(0, 4, (size,), generator=generator).tolist()
        probe = Probe(positions=tuple(range(max(0, size - 12), size)), depth=1 + depth_seed % 3) if with_probe else None
        plan = FixedPlan({p: depth for p, depth in enumerate(drawn) if depth}, probe)
        if depth_seed % 4 == 0:  # what its fresh rows read is for tests/parity/test_drafts.py
            repairs = tuple(p for p, depth in enumerate(drawn) if depth == 1)
            plan = FixedDrafts(((1 + depth_seed % 5, repairs), (depth_seed % 3, repairs[:2])))
        self.counter += 1
        request = Request(
            request_id=f"r{self.counter}",
            token_ids=token_ids,
            sampling=SamplingParams(max_tokens=max_tokens, temperature=0.7 * (depth_seed % 2), seed=depth_seed),
            mode=mode,
            tenant=tenant,
            spans=tuple(spans),
            selector=plan,
            forced_output=prompt_of(max_tokens, seed=depth_seed) if forced else None,
            return_logits=True,
        )
        self.pending[request.request_id] = Pending(request, keep)
        self.engine.add(request)

    def step(self) -> None:
        for output in self.engine.step():
            assert output.error is None
            pending = self.pending[output.request_id]
            pending.token_ids += output.token_ids
            if output.logits is not None and len(output.logits):
                assert len(output.logits) == len(output.token_ids)
                pending.last_logits = output.logits[-1]
            if output.finish_reason is not None:
                self._compare(pending)
                del self.pending[output.request_id]
                self.prompts[pending.request.tenant].append(pending.request.token_ids)
                if pending.keep is not None:
                    self._keep(pending, *pending.keep)

    def _compare(self, pending: Pending) -> None:
        request, seq = pending.request, pending.sequence
        assert seq is not None
        assert pending.last_logits is not None
        tokens = (request.token_ids + pending.token_ids)[:-1]
        full = self.decoder.config.num_layers
        depths, reused = [full] * len(tokens), []
        if request.mode is ReuseMode.SCREENED and seq.residence is not None:
            reused = [(p, kv) for p, kv in pending.reused if p < len(tokens)]
            for span in seq.held.reused:
                for position in range(span.start, min(span.end, len(tokens))):
                    depths[position] = self._planned_depth(request, position)
            depths[len(request.token_ids) - 1] = full
            depths[-1] = full
        if isinstance(request.selector, FixedPlan):
            logits, _, _ = self.oracle.run(tokens, depths, reused)
            scale = max(1.0, float(logits[-1].abs().max()))
            assert float((pending.last_logits - logits[-1]).abs().max()) < 2e-4 * scale
        assert len(pending.token_ids) <= len(request.forced_output or ()) or request.forced_output is None
        if request.forced_output is not None:
            assert pending.token_ids == request.forced_output
        elif request.sampling.temperature == 0:
            assert pending.token_ids[-1] == int(pending.last_logits.argmax())

    def _planned_depth(self, request: Request, position: int) -> int:
        """From the selector's own table, not from what the engine made of it."""
        if not isinstance(request.selector, FixedPlan):
            return 0
        if position >= len(request.token_ids) or position not in request.selector.depths:
            return 0
        allowed = self.engine.config.levels or (self.decoder.config.num_layers,)
        return min(depth for depth in allowed if depth >= request.selector.depths[position])

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 20))
    def abort(self, which: int) -> None:
        request_id = sorted(self.pending)[which % len(self.pending)]
        self.engine.abort(request_id)
        del self.pending[request_id]

    def _keep(self, pending: Pending, first: int, length: int) -> None:
        assert pending.sequence is not None
        end = min(first + length, pending.sequence.num_computed)
        if first < end:
            resident = self.engine.keep(pending.request.request_id, first, end)
            self.kept.append(Kept(pending.request.tenant, resident, self.engine.export(resident.handle)))

    @precondition(lambda self: self.kept)
    @rule(which=st.integers(0, 20))
    def release(self, which: int) -> None:
        kept = self.kept.pop(which % len(self.kept))
        if kept.resident.handle not in self.evicted:
            self.engine.release(kept.resident.handle)

    @invariant()
    def holds_are_consistent(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(3000):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.pending, "a request was never answered"
        self.engine.step()
        assert self.engine.memory().pinned == 0
        for kept in self.kept:
            if kept.resident.handle not in self.evicted:
                now = self.engine.export(kept.resident.handle)
                assert torch.equal(now.k_LNKD, kept.snapshot.k_LNKD)
                assert torch.equal(now.v_LNKD, kept.snapshot.v_LNKD)


def test_random_schedules(small_model) -> None:
    Schedules.decoder = load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")
    run_state_machine_as_test(
        Schedules,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),  # shrinking a schedule takes minutes: allow it by hand
            suppress_health_check=list(HealthCheck),
        ),
    )
