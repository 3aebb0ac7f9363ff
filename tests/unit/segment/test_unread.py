"""Which kept texts of a prompt an author had not seen."""

from dataclasses import replace

from agentkv.segment.unread import with_unread
from agentkv_engine.reuse import PlacedSpan

FIRST = PlacedSpan(start=20, end=40, handle=1, unseen=((0, 20),))
SECOND = PlacedSpan(start=50, end=60, handle=2)
THIRD = PlacedSpan(start=70, end=90, handle=3)


def unread_of_third(*unseen: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return with_unread([FIRST, SECOND, replace(THIRD, unseen=unseen)])[2].unread


def test_instructions_and_wrappers_are_no_texts():
    assert with_unread([FIRST])[0].unread == ()
    assert unread_of_third((0, 20), (40, 50), (60, 70)) == ()


def test_texts_before_it_that_the_author_did_not_see_whole_or_in_part():
    assert unread_of_third() == ()
    assert unread_of_third((0, 70)) == ((20, 40), (50, 60))
    assert unread_of_third((0, 25), (35, 55)) == ((20, 25), (35, 40), (50, 55))


def test_nothing_but_unread_is_changed():
    spans = with_unread([FIRST, SECOND, replace(THIRD, unseen=((0, 70),))])
    assert [replace(span, unread=()) for span in spans] == [FIRST, SECOND, replace(THIRD, unseen=((0, 70),))]
