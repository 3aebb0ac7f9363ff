"""Contexts: what an author had not seen, and what of that is gone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkv.segment.context import Comparison, Context, Trail

FAST = settings(max_examples=100, deadline=None)
IDS = st.lists(st.integers(0, 50), max_size=120)


def passage(seed, length=200):
    return np.random.default_rng(seed).integers(0, 2000, length).tolist()


def trail(*pieces):
    edges = np.cumsum([len(p) for p in pieces]).tolist()
    return Trail([i for p in pieces for i in p], edges)


SYSTEM, OTHER, A, B, C = (passage(seed) for seed in range(5))


def test_the_same_context_changes_nothing():
    one, other = trail(SYSTEM, A, B), trail(SYSTEM, A, C)
    change = Comparison(one, other).at(400, 400)
    assert (change.unseen, change.num_gone) == ((), 0)
    assert Context(trail=one, position=400).fingerprint() == Context(trail=other, position=400).fingerprint()


def test_what_only_the_reader_has_is_unseen():
    change = Comparison(trail(SYSTEM, B), trail(OTHER, A, B)).at(200, 400)
    assert change.unseen == ((0, 400),)
    assert change.num_gone == 200
    change = Comparison(trail(SYSTEM, B), trail(SYSTEM, A, C, B)).at(200, 600)
    assert change.unseen == ((200, 600),)
    assert change.num_gone == 0
    assert change.num_unseen == 400


def test_order_does_not_count():
    one, other = trail(SYSTEM, A, B, C), trail(SYSTEM, B, A, C)
    change = Comparison(one, other).at(600, 600)
    assert (change.unseen, change.num_gone) == ((), 0)
    assert Context(trail=one, position=600).fingerprint() == Context(trail=other, position=600).fingerprint()


def test_what_stands_behind_is_not_seen():
    change = Comparison(trail(SYSTEM, A, B), trail(SYSTEM, B, A)).at(200, 400)  # A's author had only the system prompt
    assert change.unseen == ((200, 400),)
    change = Comparison(trail(SYSTEM, B, A), trail(SYSTEM, A, B)).at(400, 200)
    assert (change.unseen, change.num_gone) == ((), 200)


def test_wrapped_text_is_seen_but_for_its_edges():
    wrapped = [7, 8, 9, *A, 9, 8, 7]
    change = Comparison(trail(SYSTEM, A, B), trail(SYSTEM, wrapped, B)).at(400, 406)
    assert 6 <= change.num_unseen < 120
    assert change.num_gone < 120


def test_a_span_inside_a_segment_has_the_segments_beginning_before_it():
    change = Comparison(trail(SYSTEM, A), trail(OTHER, A)).at(300, 300)
    assert change.unseen == ((0, 200),)
    assert change.num_gone == 200


@FAST
@given(author=IDS, reader=IDS, data=st.data())
def test_bounds(author, reader, data):
    ours, theirs = Trail(reader), Trail(author)
    at = data.draw(st.integers(0, len(author)))
    to = data.draw(st.integers(0, len(reader)))
    change = Comparison(theirs, ours).at(at, to)
    end = -1
    for a, b in change.unseen:
        assert end < a < b <= to
        end = b
    assert 0 <= change.num_gone <= at
    assert ours.num_tokens == len(reader)
    if at == 0:
        assert change.num_unseen == to
    if to == 0:
        assert change.num_gone == at


@FAST
@given(ids=IDS, data=st.data())
def test_nothing_changes_for_oneself(ids, data):
    at = data.draw(st.integers(0, len(ids)))
    change = Comparison(Trail(ids), Trail(ids)).at(at, at)
    assert (change.unseen, change.num_gone) == ((), 0)
