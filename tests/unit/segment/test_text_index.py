"""Anchors and the text index: what is shared is found, what is found is true."""

import random
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkv.segment.postings import MAX_POSTINGS
from agentkv.segment.text_index import TextIndex, Units
from agentkv.segment.winnow import GRAM, GUARANTEE, anchors

SHARED = st.text(alphabet="abcdefghij 中文字符🙂", min_size=GUARANTEE, max_size=60)
LETTERS = st.text(alphabet="ab 中🙂", max_size=30)
FAST = settings(max_examples=150, deadline=None)


def parts(index, text, tenant="t"):
    return [(m.start, m.end, m.text_id) for rivals in index.find_parts(tenant, text) for m in rivals]


def check(index, text, tenant="t"):
    """Every match is true, and the stretches of different places are disjoint."""
    end = 0
    for rivals in index.find_parts(tenant, text):
        for match in rivals:
            kept = index.text(match.text_id)
            assert text[match.start : match.end] == kept[match.text_start : match.text_start + match.length]
            assert match.length >= GRAM
            assert match.start >= end
        end = max(match.end for match in rivals)


@FAST
@given(shared=st.text(min_size=GUARANTEE, max_size=50), sides=st.tuples(*[st.text(max_size=20)] * 4))
def test_texts_that_share_enough_share_an_anchor(shared, sides):
    one, other = sides[0] + shared + sides[1], sides[2] + shared + sides[3]
    if len(set(shared)) < GUARANTEE:  # repeated characters may repeat anchors, which are given once
        return
    assert set(anchors(one)[1].tolist()) & set(anchors(other)[1].tolist())


@given(text=st.text(max_size=GUARANTEE - 1))
def test_short_texts_have_no_anchors(text):
    assert anchors(text)[0].size == 0


def test_anchors_are_few_and_repeat_nothing():
    rng = np.random.default_rng(0)
    text = "".join(map(chr, rng.integers(97, 123, 20_000)))
    assert 0.15 < anchors(text)[0].size / len(text) < 0.3
    assert anchors("a" * 20_000)[0].size == 1
    assert anchors("ab" * 20_000)[0].size <= 2


@FAST
@given(kept=SHARED, before=LETTERS, behind=LETTERS)
def test_wrapped_texts_are_found(kept, before, behind):
    index = TextIndex()
    text_id = index.add("t", kept)
    text = before + kept + behind
    check(index, text)
    if len(set(kept)) >= GUARANTEE:
        found = parts(index, text)
        assert any(a <= len(before) and b >= len(before) + len(kept) and i == text_id for a, b, i in found)


@FAST
@given(kept=SHARED, data=st.data())
def test_quoted_parts_are_found(kept, data):
    index = TextIndex()
    index.add("t", f"{kept}0123456789012345678 {kept}")
    a = data.draw(st.integers(0, len(kept) - GUARANTEE))
    quoted = kept[a:]
    check(index, f"> {quoted}")
    if len(set(quoted)) == len(quoted):
        assert parts(index, f"> {quoted}")


@given(texts=st.lists(LETTERS, max_size=8), asked=LETTERS)
def test_find_is_exact(texts, asked):
    index = TextIndex()
    ids = {text: index.add("t", text) for text in texts}
    assert index.find("t", asked) == ids.get(asked)
    assert index.find("u", asked) is None
    assert len(index) == len(ids)


@FAST
@given(texts=st.lists(SHARED, min_size=1, max_size=8, unique=True), asked=SHARED, data=st.data())
def test_a_removed_text_leaves_nothing(texts, asked, data):
    index = TextIndex()
    ids = [index.add("t", text) for text in texts]
    gone = data.draw(st.sampled_from(range(len(ids))))
    index.remove("t", ids[gone])
    assert index.find("t", texts[gone]) is None
    check(index, asked + texts[gone])
    assert all(i != ids[gone] for _, _, i in parts(index, asked + texts[gone]))
    for i in ids[:gone] + ids[gone + 1 :]:
        index.remove("t", i)
    assert len(index) == 0
    assert index._tenants == {}


def test_tenants_are_apart():
    index = TextIndex()
    text = "the very same text, said to two tenants"
    one, other = index.add("a", text), index.add("b", text)
    assert one != other
    assert index.find("a", text) == one
    assert [i for *_, i in parts(index, f"x{text}", "b")] == [other]
    assert parts(index, f"x{text}", "c") == []
    index.remove("a", one)
    assert index.find("b", text) == other


def test_a_hash_is_not_trusted(monkeypatch):
    monkeypatch.setattr("agentkv.segment.text_index.text_digest", len)
    index = TextIndex()
    one, other = index.add("t", "abc"), index.add("t", "xyz")
    assert one != other
    assert index.find("t", "xyz") == other
    assert index.find("t", "pqr") is None


def test_postings_are_capped_and_the_newest_stay():
    index = TextIndex()
    ids = [index.add("t", f"{i:03} the same boilerplate of every prompt") for i in range(50)]
    found = {i for *_, i in parts(index, "the same boilerplate of every prompt")}
    assert len(found) <= MAX_POSTINGS
    assert found <= set(ids[-MAX_POSTINGS:])


@pytest.mark.parametrize("unit", ["a", "ab", "abc ", "中", "0123456789abcdefghijklmnopqrstuvwxyz"])
def test_repetition_stays_linear(unit):
    index = TextIndex()
    for length in (1_000, 5_000, 20_000):
        index.add("t", unit * (length // len(unit)) + f" end {length}")
    begin = time.process_time()
    text = (unit * (400_000 // len(unit)))[:400_000]
    broken = "?".join([unit * 30] * 1_000)
    check(index, text)
    check(index, broken)
    assert parts(index, text)
    assert time.process_time() - begin < 10  # well under a second; quadratic would take hours


def units_of(text, lot, least):
    """Units as tokens are: none longer than a word, some of which share a character."""
    edges = sorted({0, len(text), *(place for place in range(len(text)) if lot.random() < 0.3)})
    pairs = [pair for pair in pairwise(edges) for _ in range(1 + (lot.random() < 0.1))]
    starts, ends = (np.asarray(each, np.int32).reshape(-1) for each in zip(*pairs, strict=True))
    return Units(starts=starts, ends=ends, least=least)


def all_parts(index, text, units):
    """What `find_parts` says: all pairs are looked at, one by one."""
    places, hashes = anchors(text)
    done = 0
    for place, anchor in zip(places.tolist(), hashes.tolist(), strict=True):
        if place < done:
            continue
        rivals = {}
        for _, text_id, at in zip(*index._tenants["t"].postings.find(np.asarray([anchor], np.uint64)), strict=True):
            match = index._extend(text, place, int(text_id), int(at), done)
            longer = text_id not in rivals or rivals[text_id].length < match.length
            if longer and units.are_in(match.start, match.end):
                rivals[int(text_id)] = match
        if rivals:
            yield sorted(rivals.values(), key=lambda match: -match.length)
            done = max(match.end for match in rivals.values())


@pytest.mark.parametrize("seed", range(30))
def test_what_is_left_out_holds_too_little(seed):
    lot = random.Random(seed)
    words = ["".join(lot.choices("abc 中🙂", k=lot.randint(1, 9))) for _ in range(lot.choice([5, 30]))]
    kept = [" ".join(lot.choices(words, k=lot.randint(5, 60))) for _ in range(12)]
    index = TextIndex()
    for text in kept:
        index.add("t", text)
    quoted = [text[lot.randrange(len(text)) :][: lot.randint(10, 200)] for text in lot.choices(kept, k=4)]
    text = "? ".join([*lot.choices(words, k=10), *quoted])
    for least in (1, 2, 5, 16):
        units = units_of(text, lot, least)
        found = list(index.find_parts("t", text, units))
        assert found == list(all_parts(index, text, units))
        assert all(units.are_in(match.start, match.end) for matches in found for match in matches)
    # Short stretches that are left out no longer stand in the way of longer ones.
    covered = np.zeros(len(text), bool)
    for matches in found:
        covered[min(m.start for m in matches) : max(m.end for m in matches)] = True
    for matches in index.find_parts("t", text):
        assert all(covered[m.start : m.end].all() for m in matches if units.are_in(m.start, m.end))
