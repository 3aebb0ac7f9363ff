"""Alignment: equal tokens at equal places, in runs."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkv.segment.aligner import Run, Tokens, align
from chat_tokenizers import CHINESE, PARAGRAPH, TEXTS

FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    starts, ends = tokenizer._token_bytes.offsets(ids, text)
    return Tokens(token_ids=np.asarray(ids, np.int32), starts=starts, ends=ends)


def check(reader, kept, runs, shift=0):
    end = 0
    for run in runs:
        assert end <= run.start < run.end
        end = run.end
        there = slice(run.kept_start, run.kept_start + run.num_tokens)
        assert reader.token_ids[run.start : run.end].tolist() == kept.token_ids[there].tolist()
        assert (reader.starts[run.start : run.end] + shift).tolist() == kept.starts[there].tolist()


def test_the_same_text_is_one_run(llama3):
    for text in (PARAGRAPH, CHINESE, "🙂👩‍🚀é" * 10):
        whole = tokens(llama3, text)
        runs = align(whole, whole, start=0, end=len(text), kept_start=0)
        assert runs == (Run(start=0, end=len(whole.token_ids), kept_start=0),)


@FAST
@given(before=TEXTS, behind=TEXTS, text=st.sampled_from([PARAGRAPH, CHINESE, f"🙂{PARAGRAPH}👩‍🚀"]))
def test_wrapping_changes_only_the_edges(before, behind, text, llama3):
    reader, kept = tokens(llama3, before + text + behind), tokens(llama3, text)
    runs = align(reader, kept, start=len(before), end=len(before) + len(text), kept_start=0)
    check(reader, kept, runs, shift=-len(before))
    assert sum(run.num_tokens for run in runs) >= len(kept.token_ids) - 8


@FAST
@given(text=st.text(min_size=1, max_size=60), data=st.data())
def test_runs_lie_inside_the_match(text, data, llama3):
    a = data.draw(st.integers(0, len(text) - 1))
    b = data.draw(st.integers(a + 1, len(text)))
    reader, kept = tokens(llama3, text[a:b]), tokens(llama3, text)
    runs = align(reader, kept, start=0, end=b - a, kept_start=a, min_tokens=1)
    check(reader, kept, runs, shift=a)
    assert all(kept.ends[run.kept_start + run.num_tokens - 1] <= b for run in runs)


def test_another_token_in_the_middle_gives_two_runs(llama3):
    reader, kept = tokens(llama3, PARAGRAPH), tokens(llama3, PARAGRAPH)
    ids = kept.token_ids.copy()
    ids[20] += 1
    changed = Tokens(token_ids=ids, starts=kept.starts, ends=kept.ends)
    runs = align(reader, changed, start=0, end=len(PARAGRAPH), kept_start=0)
    assert runs == (Run(start=0, end=20, kept_start=0), Run(start=21, end=len(ids), kept_start=21))
    assert align(reader, changed, start=0, end=len(PARAGRAPH), kept_start=0, min_tokens=21) == runs[1:]


def test_a_token_split_in_two_shifts_the_partners(llama3):
    half = len(PARAGRAPH) // 2 + 1
    first, second = tokens(llama3, PARAGRAPH[:half]), tokens(llama3, PARAGRAPH[half:])
    kept = Tokens(
        token_ids=np.concatenate([first.token_ids, second.token_ids]),
        starts=np.concatenate([first.starts, second.starts + half]),
        ends=np.concatenate([first.ends, second.ends + half]),
    )
    reader = tokens(llama3, PARAGRAPH)
    runs = align(reader, kept, start=0, end=len(PARAGRAPH), kept_start=0, min_tokens=4)
    check(reader, kept, runs)
    assert sum(run.num_tokens for run in runs) >= len(reader.token_ids) - 4


def test_too_little_is_nothing(llama3):
    short = tokens(llama3, "a few words")
    assert align(short, short, start=0, end=11, kept_start=0) == ()
    empty = tokens(llama3, "")
    assert align(short, empty, start=0, end=0, kept_start=0, min_tokens=1) == ()
    assert align(empty, empty, start=0, end=0, kept_start=0, min_tokens=1) == ()
