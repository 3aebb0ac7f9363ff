"""The host tier through the service and, by hypothesis, the two tiers over a real engine."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agentkv.api import ChatMessage, ChatRequest, Reuse, Usage
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError, InvalidRequest
from agentkv.service import Service
from agentkv.store.eviction import SparePinned
from agentkv.store.store import SegmentKey
from agentkv.store.tiered import TieredStore
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine, LeastRecentlyUsed
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.model.decoder import Decoder
from engine_driver import ALL_TRACED, block_bytes_of, keep, prompt_of, run, screened, span_of

REPORT = (
    "The first of them had read the tide tables from 1912 to 1948, and she said that the water had risen by 17 "
    "centimetres; the second had counted 2,306 ships; the third had been asked to look for errors and found none."
)
KV_BYTES = 1 << 20


@pytest.fixture
def open_service(small_model) -> Iterator[Callable[..., Service]]:
    opened: list[Service] = []

    def open_(**options) -> Service:
        config = ServiceConfig(kv_memory=KV_BYTES, selector="repair_none", **options)
        opened.append(Service.open(small_model("qwen2"), config))
        return opened[-1]

    yield open_
    for service in opened:
        service.check()
        service.close()


def ask(service: Service, system: str, *contents: str, **options) -> tuple[str, Usage]:
    users = (ChatMessage(role="user", content=content) for content in contents)
    chat = ChatRequest(
        messages=(ChatMessage(role="system", content=system), *users), max_tokens=8, reuse=Reuse.SCREENED, **options
    )
    deltas = list(service.submit(chat))
    assert deltas[-1].usage is not None
    return "".join(delta.text for delta in deltas), deltas[-1].usage


def crowd_out(service: Service) -> None:
    """Chats of other words until the report has left the pool."""
    for number in range(12):
        ask(service, f"You are agent {number}.", " ".join(str(number * 7919 + word * word) for word in range(40)))


def test_a_message_that_left_the_pool_comes_back_from_host_memory(open_service) -> None:
    roomy = open_service(host_kv_memory=64 << 20)
    ask(roomy, "You count ships.", REPORT)
    direct, read_in_pool = ask(roomy, "You are a critic.", REPORT)
    crowd_out(roomy)
    (info,) = [each for each in roomy.segments.list() if each.text.startswith("The first")]
    assert info.tiers == ("host",)
    later, usage = ask(roomy, "You are a critic.", REPORT)
    assert later == direct
    assert read_in_pool.reuse.restored == 0
    assert usage.reuse.restored == usage.reuse.reused + usage.reuse.repaired > 40
    assert roomy.kv_bytes()["host"] > 0
    bare = open_service()
    ask(bare, "You count ships.", REPORT)
    crowd_out(bare)
    _, usage = ask(bare, "You are a critic.", REPORT)
    assert (usage.reuse.segments, usage.reuse.restored, bare.kv_bytes()["host"]) == (0, 0, 0)


def test_segments_below_can_be_pinned_and_deleted(open_service) -> None:
    service = open_service(host_kv_memory=64 << 20)
    ask(service, "You count ships.", REPORT)
    crowd_out(service)
    (info,) = [each for each in service.segments.list() if each.tiers == ("host",) and "tide" in each.text]
    service.segments.pin(info.segment_id)
    service.check()
    ask(service, "You are a critic.", REPORT)
    (again,) = [each for each in service.segments.list() if each.segment_id == info.segment_id]
    assert again.pinned
    assert set(again.tiers) == {"pool", "host"}
    assert service.segments.unpin(info.segment_id)
    assert service.segments.delete(segment_id=info.segment_id) == 1
    with pytest.raises(InvalidRequest, match="is kept"):
        service.segments.pin(info.segment_id)


def test_host_memory_that_holds_no_block_is_a_typed_error(open_service) -> None:
    with pytest.raises(ConfigError, match="host_kv_memory of 10 bytes holds no block"):
        open_service(host_kv_memory=10)


def test_host_memory_beside_stages_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="--host-kv-memory"):
        Service.open("no/such-model", ServiceConfig(pipeline_stages=2, host_kv_memory=KV_BYTES))


class Tiers(RuleBasedStateMachine):
    """Any mix of keeping, reading, crowding out, pinning and releasing over a small pool and a small host memory: the
    books agree after every call, and what is read is what was kept."""

    decoder: ClassVar[Decoder]
    names = st.sampled_from("abcdef")

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[SegmentKey] = []
        policy, block = SparePinned(LeastRecentlyUsed()), block_bytes_of(self.decoder)
        self.engine = Engine(
            self.decoder,
            EngineConfig(kv_memory=8 * block, host_kv_memory=6 * block, trace_layers=ALL_TRACED),
            eviction=policy,
            on_evict=self.evicted,
            on_missing=self.missing,
        )
        self.store = TieredStore(
            self.engine, policy, max_bytes=8 * block, host_bytes=6 * block, on_gone=self.gone.append
        )
        self.kept: dict[str, tuple[SegmentKey, torch.Tensor]] = {}
        self.num_read = 0

    def evicted(self, handle: int) -> None:
        self.store.evicted(handle)

    def missing(self, handles: Sequence[int]) -> None:
        self.store.missing(handles)

    @rule(name=names, seed=st.integers(0, 5))
    def keep(self, name: str, seed: int) -> None:
        if name in self.kept:
            return
        tokens = prompt_of(20 + 9 * seed, seed=ord(name))
        resident = keep(self.engine, tokens, 2, len(tokens), tenant=name)
        expected = self.engine.export(resident.handle).k_LNKD
        self.engine.release_finished()
        key = SegmentKey(tenant=name, segment_id=str(resident.handle))
        if self.store.put(key, resident):
            self.kept[name] = (key, expected)
        self.forget_gone()

    @rule(name=names)
    def read(self, name: str) -> None:
        if name not in self.kept:
            return
        key, expected = self.kept[name]
        resident = self.store.get(key)
        assert resident is not None
        prompt = (1, 2, 3, *resident.token_ids, 4)
        self.num_read += 1
        answer = run(self.engine, screened("reader", prompt, span_of(resident, 3), tenant=f"{self.num_read}"))["reader"]
        self.engine.release_finished()
        assert answer.error is None
        assert answer.sources is not None
        self.forget_gone()
        if answer.sources.reused and name in self.kept and "pool" in self.store.tiers_of(key):
            assert torch.equal(self.engine.export(resident.handle).k_LNKD, expected)

    @rule(blocks=st.integers(1, 8))
    def crowd_out(self, blocks: int) -> None:
        self.num_read += 1
        run(self.engine, screened("big", prompt_of(16 * blocks - 1, seed=self.num_read), tenant="big"))
        self.engine.release_finished()
        self.forget_gone()

    @rule(name=names)
    def pin_and_unpin(self, name: str) -> None:
        if name not in self.kept:
            return
        key = self.kept[name][0]
        if self.store.is_pinned(key):
            assert self.store.unpin(key)
        elif self.store.usage_by_tier()["pool"].pinned_bytes == 0:  # room is left for running requests
            with contextlib.suppress(InvalidRequest):  # it may be larger than what may be pinned
                self.store.pin(key)

    @rule(name=names)
    def release(self, name: str) -> None:
        assert name not in self.kept or self.store.release(self.kept.pop(name)[0])

    def forget_gone(self) -> None:
        for key in self.gone:
            del self.kept[key.tenant]
        self.gone.clear()

    @invariant()
    def books_agree(self) -> None:
        self.store.check()
        self.engine.check()
        assert set(self.store.keys()) == {key for key, _ in self.kept.values()}


def test_any_mix_of_calls_keeps_both_tiers_books(small_model) -> None:
    Tiers.decoder = load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")
    run_state_machine_as_test(
        Tiers,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
