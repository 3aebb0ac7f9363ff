"""Postings and grams in arrays: what plain dictionaries and lists would hold."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkv.segment.grams import Grams
from agentkv.segment.postings import MAX_POSTINGS, Postings

ANCHORS = st.lists(st.sampled_from([3, 5, 7, 64 * 2 + 3, 128 * 2 + 3, 2**64 - 1, *range(9, 60, 2)]), max_size=30)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(ANCHORS, max_size=8), gone=st.sets(st.integers(0, 7)), again=ANCHORS)
def test_postings_are_those_of_a_dictionary(texts, gone, again):
    postings = Postings()
    expected: dict[int, list[tuple[int, int]]] = {}

    def add(text_id: int, anchors: list[int]) -> None:
        postings.add(text_id, np.arange(len(anchors)) * 10, np.asarray(anchors, np.uint64))
        for rank, anchor in enumerate(anchors):
            expected[anchor] = [(text_id, 10 * rank), *expected.get(anchor, ())][:MAX_POSTINGS]

    for text_id, anchors in enumerate(texts):
        add(text_id, anchors)
    for text_id in gone & set(range(len(texts))):
        postings.remove(text_id, np.asarray(texts[text_id], np.uint64))
        for anchor, kept in expected.items():
            expected[anchor] = [posting for posting in kept if posting[0] != text_id]
    add(8, again)
    asked = sorted({anchor for anchors in texts for anchor in anchors} | {1001})
    which, text_ids, places = postings.find(np.asarray(asked, np.uint64))
    found = list(zip(which.tolist(), text_ids.tolist(), places.tolist(), strict=True))
    assert found == [(rank, *posting) for rank, anchor in enumerate(asked) for posting in expected.get(anchor, ())]


def test_postings_make_room_for_what_is_there_alone():
    postings = Postings()
    for text_id in range(200):
        anchors = np.arange(text_id * 1000, text_id * 1000 + 200, 2, dtype=np.uint64)
        postings.add(text_id, np.arange(100), anchors)
        if text_id >= 3:
            postings.remove(text_id - 3, anchors - np.uint64(3000))
    assert len(postings._keys) < 8192
    which, text_ids, _ = postings.find(np.arange(197_000, 200_000, 2, dtype=np.uint64))
    assert len(which) == 300
    assert set(text_ids.tolist()) == {197, 198, 199}


def test_grams_of_texts_that_come_and_go():
    lot, grams, kept = random.Random(0), Grams(), {}
    for step in range(300):
        text_id = lot.randrange(40)
        if text_id in kept:
            grams.drop(text_id)
            del kept[text_id]
        else:
            kept[text_id] = np.asarray([lot.randrange(2**64) for _ in range(lot.randrange(400))], np.uint64)
            grams.put(text_id, kept[text_id])
        if step % 10 == 0 and kept:
            ids = np.asarray(lot.choices(sorted(kept), k=50))
            places = np.asarray([lot.randrange(-5, 420) for _ in ids])
            inside = [0 <= place < len(kept[i]) for i, place in zip(ids.tolist(), places.tolist(), strict=True)]
            hashes = np.asarray(
                [kept[i][place] if here else 7 for i, place, here in zip(ids, places, inside, strict=True)], np.uint64
            )
            assert grams.equal(ids, places, hashes).tolist() == inside
            assert not grams.equal(ids, places, hashes + np.uint64(1)).any()
    assert len(grams._hashes) < 40 * 400 * 4
