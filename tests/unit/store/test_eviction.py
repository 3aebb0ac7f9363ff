"""Pins and the order of eviction, and the real block pool under them."""

from agentkv.store.eviction import SparePinned
from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.engine import LeastRecentlyUsed


def order(policy: SparePinned) -> list[int]:
    return list(policy.candidates())


def filled() -> SparePinned:
    policy = SparePinned(LeastRecentlyUsed())
    for keeper_id in (1, 2, 3):
        policy.add(keeper_id)
    return policy


def test_least_recently_used_goes_first() -> None:
    policy = filled()
    policy.touch(1)
    assert order(policy) == [2, 3, 1]


def test_pinned_are_not_offered_and_come_back_as_new() -> None:
    policy = filled()
    policy.pin(2)
    policy.touch(2)
    assert order(policy) == [1, 3]
    policy.unpin(2)
    assert order(policy) == [1, 3, 2]


def test_a_removed_pin_is_forgotten() -> None:
    policy = filled()
    policy.pin(2)
    policy.remove(2)
    policy.add(2)
    assert order(policy) == [1, 3, 2]


def test_block_pool_spares_the_pinned() -> None:
    policy = SparePinned(LeastRecentlyUsed())
    pool = BlockPool(4, policy)
    dropped: list[int] = []
    keepers: list[int] = []
    for index in range(4):
        blocks = pool.allocate(1)
        assert blocks is not None
        keepers.append(pool.keep(blocks, lambda index=index: dropped.append(index)))
        pool.unpin(blocks)
    policy.pin(keepers[0])
    blocks = pool.allocate(2)
    assert blocks is not None
    assert dropped == [1, 2]
    assert pool.allocate(2) is None
    pool.check()
