"""Prompts: the same tokens as a tokenizer gives for the whole rendering, and every content in its place."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkv.api import ChatMessage
from agentkv.errors import InvalidRequest, TemplateRefused
from agentkv.tokenization import ChatTokenizer
from chat_tokenizers import CHATML, LLAMA3, STRICT, TEXTS, chat, chat_tokenizer, train, write_directory

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>")


@pytest.fixture(scope="module")
def whole():
    """The tokenizers themselves, as transformers would use them: special-token text gives special tokens."""
    return {template: train(template) for template in (CHATML, LLAMA3)}


@pytest.mark.parametrize("template", [CHATML, LLAMA3])
@FAST
@given(contents=st.lists(TEXTS.filter(lambda text: "<|" not in text), min_size=1, max_size=6))
def test_parts_tokenise_like_the_whole(template, contents, whole, chatml, llama3):
    tokenizer = chatml if template == CHATML else llama3
    messages = chat(*contents, roles=("user", "assistant"))
    assert tokenizer.is_fenced
    rendered = tokenizer.template.render(messages)
    expected = whole[template].encode(rendered, add_special_tokens=False).ids
    assert list(tokenizer.prompt(messages).token_ids) == expected
    assert list(tokenizer.prompt(messages).token_ids) == expected  # now from the cache


@FAST
@given(contents=st.lists(TEXTS, min_size=1, max_size=6))
def test_every_content_is_in_its_place(contents, tokenizer):
    prompt = tokenizer.prompt(chat(*contents))
    end = 0
    for content, message in zip(contents, prompt.messages, strict=True):
        assert message.located
        assert message.text == content or (message.text == content.strip())
        if not message.num_tokens:
            continue
        assert end <= message.start < message.end <= len(prompt.token_ids)
        end = message.end
        assert len(message.starts) == len(message.ends) == message.num_tokens
        assert message.starts.min() >= 0
        assert message.ends.max() <= len(message.text)
        assert (message.starts[1:] >= message.starts[:-1]).all()


def test_tokens_inside_a_content_say_it(chatml):
    text = "Naïve 🙂 👩‍🚀 日本語, and more."
    message = chatml.prompt(chat("user", text, "user")).messages[1]
    prompt = chatml.prompt(chat("user", text, "user"))
    assert chatml.decode(prompt.token_ids[message.start : message.end]) == text
    for t in range(message.num_tokens):
        characters = text[message.starts[t] : message.ends[t]]
        piece = chatml.decode(prompt.token_ids[message.start + t : message.start + t + 1])
        assert piece == characters or "\ufffd" in piece


@pytest.mark.parametrize("template", [CHATML, LLAMA3])
def test_equals_transformers(template, tmp_path):
    transformers = pytest.importorskip("transformers")
    directory = write_directory(tmp_path, template, eos_token=SPECIAL[1] if template == CHATML else "<|eot_id|>")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = ChatTokenizer.from_directory(directory)
    messages = [
        ChatMessage(role="system", content=" You are the critic.\n"),
        ChatMessage(role="user", content="Don't  ask:\n\n 中文 🙂 e\u0301", name="writer"),
        ChatMessage(role="assistant", content=""),
        ChatMessage(role="user", content="42"),
    ]
    dicts = [{"role": m.role, "content": m.content, **({"name": m.name} if m.name else {})} for m in messages]
    expected = theirs.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False)
    ids = ours.prompt(messages).token_ids
    assert list(ids) == list(expected)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@FAST
@given(
    attack=st.lists(st.sampled_from([*SPECIAL, "\n", "system", "evil ", "🙂", "\U00100000"]), max_size=8).map("".join)
)
def test_a_message_can_not_forge_a_turn(attack, tokenizer):
    benign = tokenizer.prompt([ChatMessage(role="user", content="x", name="y"), *chat("z")])
    prompt = tokenizer.prompt([ChatMessage(role="user", content=attack, name=attack or None), *chat("z")])
    special = set(tokenizer._fences.ids.values())
    counts = [sum(i in special for i in p.token_ids) for p in (benign, prompt)]
    assert counts[0] == counts[1]
    assert prompt.messages[0].text in (attack, attack.strip())
    message = prompt.messages[0]
    if message.num_tokens and tokenizer.is_fenced:
        assert tokenizer.decode(prompt.token_ids[message.start : message.end]) in message.text


def test_the_same_content_in_another_role_or_as_the_whole_prompt(chatml):
    text = "assistant\nuser\nassistant"
    first = chatml.prompt(chat(text)).messages[0]
    assert first.text == text
    both = chatml.prompt(chat(text, text, roles=("system", "assistant"))).messages
    assert [m.num_tokens for m in both] == [first.num_tokens] * 2


def test_messages_without_content(tokenizer):
    prompt = tokenizer.prompt(chat("", " ", "\n", "words"))
    assert [m.num_tokens for m in prompt.messages[:1]] == [0]
    assert prompt.messages[3].text == "words"
    assert all(m.located for m in prompt.messages)
    assert tokenizer.prompt([]).messages == ()


def test_ten_thousand_tiny_messages(tokenizer):
    messages = chat(*[f"m{i}" for i in range(10_000)])
    begin = time.process_time()
    prompt = tokenizer.prompt(messages)
    assert time.process_time() - begin < 5  # about 0.5 s; quadratic would be minutes
    assert [m.text for m in prompt.messages] == [m.content for m in messages]
    assert prompt.messages[-1].end <= len(prompt.token_ids)


def test_a_template_that_leaves_out_or_rewrites(chatml):
    template = (
        "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.content.split('</think>')[-1] | upper "
        "if m.role == 'assistant' else m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.template = type(tokenizer.template)(template, {})
    messages = [
        ChatMessage(role="user", content="question"),
        ChatMessage(role="assistant", content="<think>hm</think>answer"),
        ChatMessage(role="tool", content="left out"),
        ChatMessage(role="user", content="more"),
    ]
    found = tokenizer.prompt(messages).messages
    assert [m.text for m in found] == ["question", "ANSWER", "", "more"]
    assert [m.located for m in found] == [True, True, False, True]


def test_refusals_quote_the_template():
    tokenizer = chat_tokenizer(STRICT)
    with pytest.raises(TemplateRefused, match="Roles must alternate user/assistant"):
        tokenizer.prompt(chat("a", "b", roles=("assistant", "user")))


def test_half_a_surrogate_pair_is_named(chatml):
    with pytest.raises(InvalidRequest, match=r"messages\[1\].*\\ud83d") as caught:
        chatml.prompt(chat("fine", "bad \ud83d"))
    assert caught.value.param == "messages"


def test_remembered_pieces_are_bounded_and_per_tenant():
    tokenizer = ChatTokenizer(train(CHATML), chat_tokenizer(CHATML).template, max_cached_tokens=50)
    for i in range(40):
        tokenizer.prompt(chat(f"message number {i}"), tenant="a")
    assert 0 < tokenizer._pieces.num_tokens <= 50
    keys = tokenizer._pieces._pieces.keys()
    tokenizer.prompt(chat("shared"), tenant="b")
    assert ("b", "user\nshared") in keys
    assert ("a", "user\nshared") not in keys
