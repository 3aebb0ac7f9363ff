"""Which generated tokens stand behind a returned text, and how they come back."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from agentkv.api import ChatMessage
from agentkv.segment import GeneratedMemory
from agentkv.tokenization import ChatTemplate, ChatTokenizer
from agentkv.tokenization.token_bytes import byte_level_alphabet
from chat_tokenizers import CHATML, CHINESE, PARAGRAPH, TEXTS, chat

FAST = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def odd_ids(tokenizer, text):
    """Ids that say `text` but are not those of the tokenizer: every third character stands alone."""
    ids = []
    for begin in range(0, len(text), 3):
        ids += tokenizer.encode(text[begin : begin + 3])
    return tuple(ids)


@pytest.fixture
def end(chatml):
    return (chatml._fences.ids["<|im_end|>"],)


def test_all_but_the_end_token_is_kept(chatml, end):
    ids = odd_ids(chatml, PARAGRAPH)
    found = chatml.generated(PARAGRAPH, ids + end)
    assert found.token_ids == ids
    assert (found.first, found.last, found.head, found.before) == (0, len(ids), 0, ())
    assert found.starts.tolist() == sorted(found.starts.tolist())


def test_a_cut_inside_a_token_retokenises_only_the_tail(chatml):
    ids = chatml.encode("The statement STOP and more")
    text = "The statem"
    found = chatml.generated(text, ids)
    assert found.last < len(ids)
    assert found.token_ids[: found.last] == ids[: found.last]
    assert chatml.decode(found.token_ids) == text
    assert found.token_ids[found.last :] == chatml.encode(text[len(chatml.decode(ids[: found.last])) :])


def test_a_think_block_that_the_client_never_saw(chatml, end):
    ids = chatml.encode("<think>The answer is</think>\n\n") + odd_ids(chatml, PARAGRAPH) + end
    found = chatml.generated(PARAGRAPH, ids)
    assert found.token_ids[found.head :] == ids[found.first : found.last]
    assert found.before == ids[: found.first]
    assert chatml.decode(found.token_ids) == PARAGRAPH


def test_a_reply_that_ends_inside_a_character(llama3):
    ids = llama3.encode("words and more words 🙂")[:-1]
    text = llama3.decode(ids)
    assert text.endswith("\ufffd")
    found = llama3.generated(text, ids)
    assert llama3.decode(found.token_ids) == text
    assert found.token_ids[: found.last] == ids[: found.last]
    assert found.last >= len(ids) - 4


def test_what_the_tokens_do_not_say_is_not_remembered(chatml):
    ids = chatml.encode("something else")
    assert chatml.generated("not this", ids) is None
    assert chatml.generated("", ids) is None


def test_cuts_inside_tokens_that_hold_parts_of_two_characters():
    byte_of = {byte: char for char, byte in byte_level_alphabet().items()}
    first, last = byte_of[0xF0], byte_of[0x82]
    vocabulary = {char: i for i, char in enumerate(byte_of.values())}
    vocabulary |= {"Ġ" + first: 256, last + "x": 257, "<|im_start|>": 258, "<|im_end|>": 259}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    chat_tokenizer = ChatTokenizer(tokenizer, ChatTemplate(CHATML, {}))
    middle = [vocabulary[byte_of[byte]] for byte in (0x9F, 0x99)]
    ids = (256, *middle, vocabulary[last], vocabulary["a"], vocabulary["b"], vocabulary[first], *middle, 257)
    assert chat_tokenizer.decode(ids) == " 🙂ab🙂x"
    for text, kept in ((" 🙂ab🙂x", ids), ("🙂ab🙂x", ids[4:]), ("🙂ab🙂", ids[4:6]), ("🙂", ())):
        found = chat_tokenizer.generated(text, ids)
        assert found is not None
        assert chat_tokenizer.decode(found.token_ids) == text
        assert ids[found.first : found.last] == kept
        assert found.token_ids[found.head : found.head + len(kept)] == kept


@FAST
@given(text=TEXTS, before=TEXTS, behind=TEXTS, data=st.data())
def test_any_stretch_of_what_was_said(text, before, behind, data, llama3):
    ids = llama3.encode(before + text + behind)
    said = before + text + behind
    a = data.draw(st.integers(0, len(said)))
    b = data.draw(st.integers(a, len(said)))
    found = llama3.generated(said[a:b], ids)
    if a == b:
        assert found is None
        return
    assert llama3.decode(found.token_ids) == said[a:b]
    kept = found.last - found.first
    assert found.token_ids[found.head : found.head + kept] == ids[found.first : found.last]
    assert found.before == ids[: found.first]


@pytest.fixture
def memory(chatml):
    return GeneratedMemory(chatml)


WRAPS = {
    "whole": "{}",
    "f-string": "The critic said: {} What now?",
    "xml": "<name>critic</name><content>{}</content>",
    "joined": "x{}y",
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("text", [PARAGRAPH, CHINESE, f"{PARAGRAPH} 🙂"])
def test_generated_ids_come_back(chatml, end, memory, wrap, text):
    ids = odd_ids(chatml, text)
    memory.remember("a", text, ids + end)
    messages = [
        *chat("question", roles=("system",)),
        ChatMessage(role="user", content=wrap.format(text), name="critic"),
        *chat("more"),
    ]
    prompt = chatml.prompt(messages, tenant="a", splicer=memory.splicer("a"))
    message = prompt.messages[1]
    inside = prompt.token_ids[message.start : message.end]
    assert any(inside[i : i + len(ids)] == ids for i in range(len(inside)))
    assert chatml.decode(inside) == message.text == wrap.format(text)
    assert prompt.num_spliced == len(ids)
    again = chatml.prompt(messages, tenant="a", splicer=memory.splicer("a"))
    assert again.token_ids == prompt.token_ids
    other = chatml.prompt(messages, tenant="b", splicer=memory.splicer("b"))
    assert other.num_spliced == 0
    assert other.token_ids == chatml.prompt(messages).token_ids


def test_a_trimming_template_finds_a_reply_with_blanks_around(llama3):
    memory = GeneratedMemory(llama3)
    ids = odd_ids(llama3, f" {PARAGRAPH}\n")
    memory.remember("", f" {PARAGRAPH}\n", ids)
    prompt = llama3.prompt(chat(f" {PARAGRAPH}\n"), splicer=memory.splicer(""))
    assert prompt.messages[0].text == PARAGRAPH
    assert prompt.num_spliced > len(ids) - 4


def test_a_reply_that_quotes_another_comes_before_it(chatml, memory):
    inner, outer = PARAGRAPH[:90], f"I read: {PARAGRAPH[:90]} Indeed, said the writer, and that was all of it."
    memory.remember("", inner, odd_ids(chatml, inner))
    memory.remember("", outer, ids := odd_ids(chatml, outer))
    prompt = chatml.prompt(chat(f"[{outer}] and [{inner}]"), splicer=memory.splicer(""))
    text = chatml.decode(prompt.token_ids[prompt.messages[0].start : prompt.messages[0].end])
    assert text == f"[{outer}] and [{inner}]"
    assert prompt.num_spliced == len(ids) + len(odd_ids(chatml, inner))


def test_short_replies_are_whole_messages_only(chatml, memory):
    memory.remember("", "no", (*chatml.encode("n"), *chatml.encode("o")))
    assert chatml.prompt(chat("no"), splicer=memory.splicer("")).num_spliced == 2
    assert chatml.prompt(chat("oh no, not now"), splicer=memory.splicer("")).num_spliced == 0


def test_the_memory_is_bounded(chatml):
    memory = GeneratedMemory(chatml, max_tokens=200)
    texts = [f"{i} {PARAGRAPH[i : i + 100]}" for i in range(50)]
    for i, text in enumerate(texts):
        memory.remember(f"tenant {i % 3}", text, chatml.encode(text))
        assert memory.num_tokens <= 200
    assert chatml.prompt(chat(texts[-1]), splicer=memory.splicer("tenant 1")).num_spliced > 0
    assert chatml.prompt(chat(texts[0]), splicer=memory.splicer("tenant 0")).num_spliced == 0
    assert chatml.prompt(chat(f"x {texts[0]}"), splicer=memory.splicer("tenant 0")).num_spliced == 0


def test_splices_without_fences(unfenced):
    memory = GeneratedMemory(unfenced)
    memory.remember("", PARAGRAPH, ids := odd_ids(unfenced, PARAGRAPH))
    prompt = unfenced.prompt(chat("x", f"so: {PARAGRAPH}"), splicer=memory.splicer(""))
    message = prompt.messages[1]
    assert prompt.num_spliced == len(ids)
    assert unfenced.decode(prompt.token_ids) == f"user: x\nuser: so: {PARAGRAPH}\nassistant:"
    assert unfenced.decode(prompt.token_ids[message.start : message.end]).endswith(PARAGRAPH)
