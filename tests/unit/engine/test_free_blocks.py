"""Free blocks: neighbours where that can be, every block once."""

from hypothesis import given
from hypothesis import strategies as st

from agentkv_engine.cache.free_blocks import FreeBlocks
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from engine_driver import engine_of, prompt_of


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 40)), max_size=30))
def test_every_block_is_handed_out_once(calls) -> None:
    free, held = FreeBlocks(40), []
    for num, grow, number in calls:
        if num <= len(free):
            behind = held[-1] if held and grow else None
            taken = free.take(num, behind)
            assert len(taken) == len(set(taken)) == num
            assert not set(taken) & set(held)
            held += taken
        elif held:
            free.add(held.pop(number % len(held)))
        assert sorted([*held, *free.ids()]) == list(range(40))
        assert len(free) == 40 - len(held)


def test_what_grows_stays_in_one_stretch() -> None:
    free = FreeBlocks(1000)
    sequences = [free.take(10) for _ in range(8)]
    for _ in range(40):
        for blocks in sequences:
            blocks.extend(free.take(1, blocks[-1]))
    assert all(blocks == list(range(blocks[0], blocks[0] + 50)) for blocks in sequences)


def test_keys_of_sequences_that_decode_together_lie_in_one_stretch(decoder) -> None:
    engine = engine_of(decoder, 200)
    for n in range(4):
        prompt, params = prompt_of(30 + n, seed=n), SamplingParams(max_tokens=60)
        engine.add(Request(request_id=str(n), token_ids=prompt, sampling=params, mode=ReuseMode.OFF))
    for _ in range(50):
        engine.step()
    for seq in engine._scheduler._running:
        _, slots, _ = seq.held.table.readable(0, len(seq.token_ids) - 1)
        assert slots.tolist() == list(range(slots[0], slots[0] + len(slots)))
