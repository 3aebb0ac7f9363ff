"""What every tier owes its users: keys of tenants, a budget, an order, pins, honest books."""

from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from store_tiers import MAX_BYTES, MAX_PINNED_BYTES, TIERS, TOKEN_BYTES, Tier

from agentkv.errors import InvalidRequest
from agentkv.store.store import SegmentKey, StoreUsage


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[Tier]:
    made = TIERS[request.param]()
    yield made
    made.store.check()


def key(segment_id: str, tenant: str = "t") -> SegmentKey:
    return SegmentKey(tenant=tenant, segment_id=segment_id)


def put(tier: Tier, *segment_ids: str, tokens: int = 20) -> None:
    for segment_id in segment_ids:
        assert tier.store.put(key(segment_id), tier.make(tokens))


def held(tier: Tier, segment_ids: str) -> str:
    return "".join(s for s in segment_ids if key(s) in tier.store)


def test_gives_back_what_was_put(tier: Tier) -> None:
    kv = tier.make(7)
    assert tier.store.put(key("a"), kv)
    assert tier.store.get(key("a")) == kv
    assert key("a") in tier.store
    assert tier.store.get(key("b")) is None
    assert tier.store.usage() == StoreUsage(segments=1, tokens=7, num_bytes=70)


def test_tenants_never_meet(tier: Tier) -> None:
    put(tier, "a")
    other = key("a", tenant="u")
    assert tier.store.get(other) is None
    assert not tier.store.release(other)
    with pytest.raises(InvalidRequest):
        tier.store.pin(other)
    assert tier.store.put(other, tier.make(5))
    assert tier.store.release(key("a"))
    assert other in tier.store


def test_a_held_key_is_not_overwritten(tier: Tier) -> None:
    put(tier, "a")
    second = tier.make(3)
    with pytest.raises(ValueError, match="held already"):
        tier.store.put(key("a"), second)
    assert tier.store.usage().tokens == 20


def test_full_store_drops_what_was_read_longest_ago(tier: Tier) -> None:
    put(tier, "a", "b", "c", "d", "e")
    assert tier.store.get(key("a")) is not None
    assert key("b") in tier.store  # looking is not reading
    put(tier, "f", "g")
    assert held(tier, "abcdefg") == "adefg"
    assert tier.gone == [key("b"), key("c")]
    assert tier.num_alive() == 5


def test_exactly_full_drops_nothing(tier: Tier) -> None:
    put(tier, "a", tokens=60)
    put(tier, "b", tokens=40)
    assert tier.gone == []
    assert tier.store.usage().num_bytes == MAX_BYTES


def test_what_can_never_fit_is_freed_and_drops_nothing(tier: Tier) -> None:
    put(tier, "a")
    assert not tier.store.put(key("big"), tier.make(101))
    assert held(tier, "a") == "a"
    assert tier.num_alive() == 1
    put(tier, "b", tokens=40)
    tier.store.pin(key("b"))
    assert not tier.store.put(key("big"), tier.make(61))
    assert tier.num_alive() == 2
    assert tier.gone == []


def test_pinned_keys_stay(tier: Tier) -> None:
    put(tier, "a", "b")
    tier.store.pin(key("a"))
    tier.store.pin(key("a"))
    assert tier.store.usage().pinned_bytes == 200
    put(tier, "c", "d", "e", "f", "g", "h")
    assert held(tier, "abcdefgh") == "aefgh"
    assert tier.store.get(key("a")) is not None


def test_unpinned_keys_go_in_their_turn(tier: Tier) -> None:
    put(tier, "a", "b")
    tier.store.pin(key("a"))
    assert tier.store.unpin(key("a"))
    assert not tier.store.unpin(key("a"))
    assert tier.store.usage().pinned_bytes == 0
    put(tier, "c", "d", "e", "f")
    assert held(tier, "abcdef") == "acdef"
    put(tier, "g")
    assert held(tier, "abcdefg") == "cdefg"


def test_pins_have_a_budget(tier: Tier) -> None:
    put(tier, "a", "b", "c", "d")
    tier.store.pin(key("a"))
    tier.store.pin(key("b"))
    with pytest.raises(InvalidRequest, match="100 of 500") as caught:
        tier.store.pin(key("c"))
    assert caught.value.code == "pin_budget_exceeded"
    tier.store.release(key("a"))
    tier.store.pin(key("c"))


def test_pinning_what_is_not_there_names_it(tier: Tier) -> None:
    with pytest.raises(InvalidRequest, match="'zz'") as caught:
        tier.store.pin(key("zz"))
    assert caught.value.code == "segment_not_found"
    assert not tier.store.unpin(key("zz"))


def test_release_frees_even_pinned_ones_and_is_not_reported(tier: Tier) -> None:
    put(tier, "a", "b")
    tier.store.pin(key("a"))
    assert tier.store.release(key("a"))
    assert not tier.store.release(key("a"))
    assert tier.store.usage() == StoreUsage(segments=1, tokens=20, num_bytes=200)
    assert tier.num_alive() == 1
    assert tier.gone == []
    put(tier, "a")


def test_memory_taken_from_outside_spares_pinned_keys_and_is_reported(tier: Tier) -> None:
    if tier.shrink is None:
        pytest.skip("nobody else can take this tier's memory")
    put(tier, "a", "b", "c")
    tier.store.pin(key("a"))
    tier.shrink()
    assert tier.gone == [key("b")]
    tier.shrink()
    tier.shrink()
    assert held(tier, "abc") == "a"
    assert tier.store.get(key("b")) is None
    put(tier, "b")


class Books(RuleBasedStateMachine):
    """Any mix of calls against a plain model: the books agree after every one."""

    tier_name: ClassVar[str]
    keys = st.builds(SegmentKey, tenant=st.sampled_from("tu"), segment_id=st.sampled_from("abcd"))

    def __init__(self) -> None:
        super().__init__()
        self.tier = TIERS[self.tier_name]()
        self.model: dict[SegmentKey, int] = {}  # tokens, read longest ago first
        self.pinned: set[SegmentKey] = set()

    def forget_dropped(self) -> None:
        for dropped in self.tier.gone:
            assert dropped not in self.pinned, "a pinned key was dropped"
            del self.model[dropped]
        self.tier.gone.clear()

    @rule(key=keys, tokens=st.integers(1, 110))
    def put(self, key: SegmentKey, tokens: int) -> None:
        if key in self.model:
            return
        fits = sum(self.model[k] for k in self.pinned) + tokens <= MAX_BYTES // TOKEN_BYTES
        expected = dict(self.model)
        while fits and sum(expected.values()) + tokens > MAX_BYTES // TOKEN_BYTES:
            del expected[next(k for k in expected if k not in self.pinned)]
        assert self.tier.store.put(key, self.tier.make(tokens)) is fits
        self.forget_dropped()
        assert self.model == expected
        if fits:
            self.model[key] = tokens

    @rule(key=keys)
    def get(self, key: SegmentKey) -> None:
        found = self.tier.store.get(key)
        assert (found is not None) is (key in self.model)
        if key in self.model:
            self.model[key] = self.model.pop(key)

    @rule(key=keys)
    def pin(self, key: SegmentKey) -> None:
        pinned_bytes = sum(self.model[k] for k in self.pinned | {key} if k in self.model) * TOKEN_BYTES
        if key in self.model and pinned_bytes <= MAX_PINNED_BYTES:
            self.tier.store.pin(key)
            self.pinned.add(key)
        else:
            with pytest.raises(InvalidRequest):
                self.tier.store.pin(key)

    @rule(key=keys)
    def unpin(self, key: SegmentKey) -> None:
        assert self.tier.store.unpin(key) is (key in self.pinned)
        if key in self.pinned:
            self.pinned.remove(key)
            self.model[key] = self.model.pop(key)

    @rule(key=keys)
    def release(self, key: SegmentKey) -> None:
        assert self.tier.store.release(key) is (key in self.model)
        self.model.pop(key, None)
        self.pinned.discard(key)

    @rule()
    def shrink(self) -> None:
        if self.tier.shrink is not None:
            before = len(self.model)
            self.tier.shrink()
            self.forget_dropped()
            assert before - len(self.model) == (before > len(self.pinned))

    @invariant()
    def books_agree(self) -> None:
        self.tier.store.check()
        assert self.tier.store.usage() == StoreUsage(
            segments=len(self.model),
            tokens=sum(self.model.values()),
            num_bytes=sum(self.model.values()) * TOKEN_BYTES,
            pinned_bytes=sum(self.model[k] for k in self.pinned) * TOKEN_BYTES,
        )
        assert self.tier.num_alive() == len(self.model)


@pytest.mark.parametrize("name", TIERS)
def test_any_mix_of_calls_keeps_the_books(name: str) -> None:
    machine = type("BooksOfTier", (Books,), {"tier_name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
