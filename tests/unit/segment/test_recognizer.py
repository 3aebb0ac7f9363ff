"""Recognition: kept texts are found in whatever wrapping, in the right copy, and never across tenants."""

import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkv.api import ChatMessage
from agentkv.segment import GeneratedMemory, Recognizer
from chat_tokenizers import CHINESE, PARAGRAPH, TEXTS, chat, resident, resident_of

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EMOJI = "👩‍🚀 takes off 🙂, \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 and lands 🛬🇫🇷 é 👨‍👩‍👧 🙃🙂🙃 done ✅✅"
WRAPS = {
    "whole": "{}",
    "f-string": "The critic said: {} What do you think?",
    "xml": "<name>critic</name><content>{}</content>",
    "quote": "> {}\nI disagree.",
    "glued": "x{}y",
}


@pytest.fixture
def recognizer():
    return Recognizer()


def keep(recognizer, tokenizer, text, tenant="t", system="You are the author.", **kv):
    """An author reads `text`, and its KV is kept."""
    prompt = tokenizer.prompt(chat(system, text, roles=("system", "user")))
    message = prompt.messages[1]
    return recognizer.remember(tenant, prompt, message, resident_of(prompt, message, **kv))


def check(recognition, prompt):
    """Spans are disjoint, inside messages, and their tokens are the residents'."""
    by_handle = {segment.resident.handle: segment for segment in recognition.segments}
    end = 0
    for span in recognition.spans:
        assert end <= span.start < span.end <= len(prompt.token_ids)
        end = span.end
        kept = by_handle[span.handle].token_ids
        here = prompt.token_ids[span.start : span.end]
        assert kept[span.resident_start : span.resident_start + span.num_tokens] == here
        assert any(m.start <= span.start and span.end <= m.end for m in prompt.messages)
        assert all(a < b <= span.start for a, b in span.unseen)
    assert {span.handle for span in recognition.spans} == set(by_handle)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("text", [PARAGRAPH, CHINESE, EMOJI])
def test_a_kept_text_is_found_in_any_wrapping(recognizer, tokenizer, text, wrap):
    segment = keep(recognizer, tokenizer, text).segment
    prompt = tokenizer.prompt(
        [*chat("You are the reader.", roles=("system",)), ChatMessage(role="assistant", content=wrap.format(text))]
    )
    found = recognizer.recognise(prompt, "t")
    check(found, prompt)
    assert found.segments == (segment,)
    assert found.num_tokens >= segment.num_tokens - 8
    assert all(span.context_changed and span.hops == 1 for span in found.spans)
    recognizer.check()


@pytest.mark.parametrize("text", [PARAGRAPH, CHINESE])
def test_a_quoted_part_is_found(recognizer, chatml, text):
    keep(recognizer, chatml, text)
    third = len(text) // 3
    prompt = chatml.prompt(chat(f"You wrote “{text[third : 3 * third]}”, why?"))
    found = recognizer.recognise(prompt, "t")
    check(found, prompt)
    assert found.num_tokens >= len(chatml.encode(text[third : 3 * third])) - 4
    assert found.spans[0].resident_start > 0
    assert found.spans[0].num_gone >= found.spans[0].resident_start  # the author had seen its own beginning


def test_a_message_that_is_the_whole_prompt(unfenced, recognizer):
    unfenced = type(unfenced)(unfenced._tokenizer, type(unfenced.template)("{{ messages[0].content }}", {}))
    prompt = unfenced.prompt(chat(PARAGRAPH))
    (message,) = prompt.messages
    assert (message.start, message.end) == (0, len(prompt.token_ids))
    recognizer.remember("t", prompt, message, resident_of(prompt, message, exact=True))
    found = recognizer.recognise(prompt, "t")
    check(found, prompt)
    assert found.num_tokens == len(prompt.token_ids)
    assert not found.spans[0].context_changed


def test_two_tenants_share_nothing(recognizer, chatml):
    keep(recognizer, chatml, PARAGRAPH, tenant="a")
    for wrap in WRAPS.values():
        prompt = chatml.prompt(chat(wrap.format(PARAGRAPH)))
        found = recognizer.recognise(prompt, "b")
        assert found.spans == ()
        assert found.misses == {"unknown_text": 1}
    kept = keep(recognizer, chatml, PARAGRAPH, tenant="b").segment
    prompt = chatml.prompt(chat(PARAGRAPH))
    assert recognizer.recognise(prompt, "b").segments == (kept,)


def test_the_same_text_twice_and_overlapping_texts(recognizer, chatml):
    first, second = PARAGRAPH[:140], PARAGRAPH[60:]
    keep(recognizer, chatml, first)
    keep(recognizer, chatml, second)
    prompt = chatml.prompt(chat(first, first, f"{first}, and again: {first}", PARAGRAPH))
    found = recognizer.recognise(prompt, "t")
    check(found, prompt)
    per_message = [sum(m.start <= span.start < m.end for span in found.spans) for m in prompt.messages]
    assert per_message[:2] == [1, 1]
    assert per_message[2] >= 2
    assert found.num_tokens >= 0.85 * sum(m.num_tokens for m in prompt.messages)


def test_misses_have_reasons(recognizer, chatml):
    keep(recognizer, chatml, PARAGRAPH)
    odd = chatml.generated(PARAGRAPH, [i for char in PARAGRAPH for i in chatml.encode(char)])
    prompt = chatml.prompt(chat("", "short", CHINESE, PARAGRAPH), splicer=lambda texts: [[] for _ in texts])
    assert recognizer.recognise(prompt, "t").misses == {"too_short": 1, "unknown_text": 1}
    memory = GeneratedMemory(chatml)
    memory.remember("t", PARAGRAPH, odd.token_ids)
    spelt = chatml.prompt(chat(PARAGRAPH), splicer=memory.splicer("t"))
    assert recognizer.recognise(spelt, "t").misses == {"unaligned": 1}


def test_short_messages_are_not_kept(recognizer, chatml):
    kept = keep(recognizer, chatml, "too short")
    assert (kept.segment, kept.reason) == (None, "too_short")
    assert len(kept.release) == 1
    assert recognizer.num_segments == 0


def test_wrong_tokens_are_refused(recognizer, chatml):
    prompt = chatml.prompt(chat(PARAGRAPH))
    message = prompt.messages[0]
    with pytest.raises(ValueError, match="keep exactly these positions"):
        recognizer.remember("t", prompt, message, resident(prompt.token_ids[message.start : message.end - 1]))


def test_the_copy_with_the_least_unseen_context_is_read(recognizer, chatml):
    plan = "The plan: read the document from its first page to its last, and then write down every single number."
    alone = chatml.prompt(chat("You are the author.", PARAGRAPH, roles=("system", "user")))
    informed = chatml.prompt(chat("You are the critic.", plan, PARAGRAPH, roles=("system", "user")))
    exact = recognizer.remember(
        "t", alone, alone.messages[1], resident_of(alone, alone.messages[1], exact=True)
    ).segment
    hopped = recognizer.remember(
        "t", informed, informed.messages[2], resident_of(informed, informed.messages[2], hops=3)
    )
    reader = chatml.prompt(chat("You are the critic.", plan, "now", PARAGRAPH, roles=("system", "user")))
    found = recognizer.recognise(reader, "t")
    assert found.segments == (hopped.segment,)
    assert found.spans[0].hops == 3
    assert found.spans[0].num_gone == 0
    other = chatml.prompt(chat("You are the author.", "now", PARAGRAPH, roles=("system", "user")))
    assert recognizer.recognise(other, "t").segments == (exact,)


def test_at_equal_context_exact_beats_approximate(recognizer, chatml):
    rough = keep(recognizer, chatml, PARAGRAPH, hops=2)
    exact = keep(recognizer, chatml, PARAGRAPH, exact=True)
    assert exact.release == (rough.segment.resident,)
    again = keep(recognizer, chatml, PARAGRAPH, hops=1)
    assert (again.segment, again.reason) == (None, "duplicate")
    assert recognizer.num_segments == 1
    prompt = chatml.prompt(chat("You are the author.", PARAGRAPH, roles=("system", "user")))
    assert recognizer.wants("t", prompt, prompt.messages[1]) == "duplicate"
    assert recognizer.wants("u", prompt, prompt.messages[1]) is None


def test_two_copies_at_most_and_exact_ones_stay(recognizer, chatml):
    exact = keep(recognizer, chatml, PARAGRAPH, system="one, and nobody else", exact=True)
    rough = keep(recognizer, chatml, PARAGRAPH, system="two, who reads it all", hops=1)
    third = keep(recognizer, chatml, PARAGRAPH, system="three, who is late", hops=1)
    assert third.release == (rough.segment.resident,)
    better = keep(recognizer, chatml, PARAGRAPH, system="four, who is careful", exact=True)
    assert better.release == (third.segment.resident,)
    worse = keep(recognizer, chatml, PARAGRAPH, system="five, who hops", hops=1)
    assert (worse.segment, worse.reason) == (None, "better_copies")
    assert recognizer.num_segments == 2
    prompt = chatml.prompt(chat("one, and nobody else", PARAGRAPH, roles=("system", "user")))
    assert recognizer.recognise(prompt, "t").segments == (exact.segment,)
    last = keep(recognizer, chatml, PARAGRAPH, system="six, who is careful too", exact=True)
    assert last.release == (better.segment.resident,)  # not read for longest
    recognizer.check()


def test_a_forgotten_resident_is_not_read(recognizer, chatml):
    segment = keep(recognizer, chatml, PARAGRAPH).segment
    prompt = chatml.prompt(chat(PARAGRAPH))
    recognizer.forget(segment.resident.handle)
    assert recognizer.recognise(prompt, "t").misses == {"unknown_text": 1}
    assert recognizer.num_segments == 0
    recognizer.check()


def test_a_resident_evicted_before_it_was_remembered(recognizer, chatml):
    prompt = chatml.prompt(chat(PARAGRAPH))
    kv = resident_of(prompt, prompt.messages[0])
    recognizer.forget(kv.handle)
    kept = recognizer.remember("t", prompt, prompt.messages[0], kv)
    assert (kept.segment, kept.release, kept.reason) == (None, (), "segment_gone")


def test_a_reply_is_found_and_knows_its_context(recognizer, chatml):
    prompt = chatml.prompt(chat("You are the author.", CHINESE, roles=("system", "user")))
    ids = chatml.encode(PARAGRAPH) + tuple(chatml.stop_token_ids)
    generated = chatml.generated(PARAGRAPH, ids)
    kept = recognizer.remember_output("t", prompt, generated, resident(ids[: generated.last - 1], exact=True))
    reader = chatml.prompt(
        chat("You are the author.", CHINESE, PARAGRAPH, "and", roles=("system", "user", "assistant", "user"))
    )
    found = recognizer.recognise(reader, "t")
    check(found, reader)
    assert found.segments == (kept.segment,)
    (span,) = found.spans
    assert span.num_tokens == generated.last - 1
    assert not span.context_changed
    stranger = chatml.prompt(chat("You are someone else.", PARAGRAPH, roles=("system", "user")))
    (span,) = recognizer.recognise(stranger, "t").spans
    assert span.num_unseen > 0
    assert span.num_gone >= len(chatml.encode(CHINESE))


def test_a_reply_behind_a_think_block(recognizer, chatml):
    prompt = chatml.prompt(chat("Think."))
    thought = chatml.encode("<think>" + PARAGRAPH[:50] + "</think>")
    ids = thought + chatml.encode(PARAGRAPH)
    generated = chatml.generated(PARAGRAPH, ids)
    kept = recognizer.remember_output("t", prompt, generated, resident(ids[generated.first : generated.last - 1]))
    assert kept.segment is not None
    with pytest.raises(ValueError, match="keep only these"):
        recognizer.remember_output("t", prompt, generated, resident(ids[: generated.last - 1]))
    (span,) = recognizer.recognise(chatml.prompt(chat(PARAGRAPH)), "t").spans
    assert span.num_gone >= len(thought)


@FAST
@given(
    kept=st.lists(st.sampled_from([PARAGRAPH, CHINESE, EMOJI, PARAGRAPH[40:160], "short"]), min_size=1, max_size=4),
    glue=st.lists(TEXTS, min_size=1, max_size=5),
    picks=st.lists(st.integers(0, 3), max_size=5),
)
def test_spans_hold_what_they_say(kept, glue, picks, chatml):
    recognizer = Recognizer(min_tokens=8)
    for text in kept:
        keep(recognizer, chatml, text)
    contents = [g + kept[p % len(kept)] + g[::-1] for g, p in zip(glue, picks, strict=False)] + glue + kept
    prompt = chatml.prompt(chat("reader", *contents))
    check(recognizer.recognise(prompt, "t"), prompt)
    recognizer.check()


@FAST
@given(text=TEXTS, other=TEXTS)
def test_generated_ids_are_read_whatever_they_are(text, other, chatml):
    text = f"{PARAGRAPH[:100]}{text}"
    ids = tuple(i for begin in range(0, len(text), 5) for i in chatml.encode(text[begin : begin + 5]))
    text = chatml.decode(ids)  # this tokenizer composes characters (NFC)
    recognizer, memory = Recognizer(), GeneratedMemory(chatml)
    prompt = chatml.prompt(chat("question"))
    generated = memory.remember("t", text, ids)
    assert generated is not None
    recognizer.remember_output("t", prompt, generated, resident(ids[:-1], exact=True))
    reader = chatml.prompt(chat(other, text), splicer=memory.splicer("t"))
    found = recognizer.recognise(reader, "t")
    check(found, reader)
    assert found.num_tokens >= len(ids) - 1


def test_ten_thousand_messages_and_repeated_characters(recognizer, chatml):
    keep(recognizer, chatml, "ha" * 500)
    keep(recognizer, chatml, PARAGRAPH)
    prompt = chatml.prompt(chat("ha" * 20_000, PARAGRAPH, *[f"tiny {i}" for i in range(10_000)]))
    begin = time.process_time()
    found = recognizer.recognise(prompt, "t")
    assert time.process_time() - begin < 5
    check(found, prompt)
    assert found.misses["too_short"] == 10_000
    assert len(found.segments) == 2


def test_forgetting_from_another_thread(chatml):
    recognizer = Recognizer()
    texts = [f"{i} {PARAGRAPH}" for i in range(30)]
    prompt = chatml.prompt(chat(*texts))
    handles, done = [], threading.Event()

    def evict() -> None:
        while not done.is_set() or handles:
            if handles:
                recognizer.forget(handles.pop())

    thread = threading.Thread(target=evict)
    thread.start()
    for _ in range(3):
        for message in prompt.messages:
            kept = recognizer.remember("t", prompt, message, resident_of(prompt, message))
            handles.extend([kept.segment.resident.handle] if kept.segment else [])
        check(recognizer.recognise(prompt, "t"), prompt)
    done.set()
    thread.join()
    assert recognizer.num_segments == 0
    recognizer.check()
