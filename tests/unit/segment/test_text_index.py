"""Anchors and the text index: what is shared is found, what is found is true."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkv.segment.text_index import MAX_POSTINGS, TextIndex
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
