"""Tokens back to text: streams, offsets, end tokens; and directories that can't be served."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from agentkv.errors import ModelError
from agentkv.tokenization import ChatTemplate, ChatTokenizer
from agentkv.tokenization.token_bytes import TokenBytes
from chat_tokenizers import CHATML, LLAMA3, STRICT, TEXTS, chat, train, write_directory

FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FAST
@given(ids=st.lists(st.integers(0, 1999), max_size=40), cuts=st.lists(st.integers(1, 5), max_size=40))
def test_a_stream_says_what_decoding_says(ids, cuts, chatml):
    stream = chatml.detokenizer()
    parts, position = [], 0
    for size in [*cuts, len(ids)]:
        parts.append(stream.feed(ids[position : position + size]))
        position += size
    assert "".join(parts) + stream.finish() == chatml.decode(ids) == chatml._tokenizer.decode(ids)


@FAST
@given(text=st.text(max_size=40))
def test_a_stream_never_shows_half_a_character(text, llama3):
    ids = llama3.encode(text)
    stream = llama3.detokenizer()
    parts = [stream.feed([i]) for i in ids]
    assert "".join(parts) == text
    assert stream.finish() == ""
    assert all("\ufffd" not in part or "\ufffd" in text for part in parts)


def test_a_stream_that_ends_inside_a_character(llama3):
    ids = llama3.encode("a🙂")
    stream = llama3.detokenizer()
    assert stream.feed(ids[:-1]) == "a"
    assert stream.finish() == "\ufffd"


@FAST
@given(text=TEXTS)
def test_offsets_are_those_of_the_tokenizer(text, llama3):
    encoding = llama3._tokenizer.encode(text, add_special_tokens=False)
    offsets = llama3._token_bytes.offsets(encoding.ids, text)
    assert offsets is not None
    assert list(zip(*[o.tolist() for o in offsets], strict=True)) == encoding.offsets
    assert llama3._token_bytes.offsets(encoding.ids, text + "x") is None


def test_special_token_text_is_text_in_encode(chatml):
    assert chatml.decode(chatml.encode("<|im_end|>")) == "<|im_end|>"


def test_sentencepiece_tokens():
    vocabulary = {"<unk>": 0, "▁a": 1, "b": 2, "▁": 3, **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    token_bytes = TokenBytes(tokenizer)
    ids = [1, 2, 3, 4 + 0xC3, 4 + 0xA9]
    assert token_bytes.join(ids) == " ab é".encode()


def test_an_unknown_decoder_is_refused():
    tokenizer = train(CHATML)
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="byte-level BPE"):
        ChatTokenizer(tokenizer, ChatTemplate(CHATML, {}))


def test_end_tokens(tmp_path):
    directory = write_directory(tmp_path, CHATML, eos_token={"content": "<|endoftext|>"})
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert ChatTokenizer.from_directory(directory).stop_token_ids == {0, 2, 7, 9}
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert ChatTokenizer.from_directory(str(directory)).stop_token_ids == {0, 2, 7}


def test_end_of_turn_of_llama3(llama3):
    assert llama3.end_of_turn_id == llama3._tokenizer.token_to_id("<|eot_id|>")
    assert llama3.stop_token_ids == {llama3.end_of_turn_id}


def test_no_end_of_turn(unfenced):
    assert unfenced.end_of_turn_id is None
    assert unfenced.stop_token_ids == frozenset()


def test_template_files(tmp_path):
    directory = write_directory(tmp_path, LLAMA3, eos_token="<|eot_id|>")
    by_config = ChatTokenizer.from_directory(directory).prompt(chat("hi")).token_ids
    config = json.loads((directory / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": config.pop("chat_template")}]
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert ChatTokenizer.from_directory(directory).prompt(chat("hi")).token_ids == by_config
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": STRICT}))
    (directory / "chat_template.jinja").write_text(LLAMA3)
    assert ChatTokenizer.from_directory(directory).prompt(chat("hi")).token_ids == by_config


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "can't be read"),
        (lambda d: (d / "tokenizer_config.json").write_text("{"), "can't be read as JSON"),
        (lambda d: (d / "tokenizer_config.json").write_text("{}"), "no chat template"),
        (lambda d: (d / "chat_template.jinja").write_text("{% for %}"), "not valid Jinja"),
        (lambda d: (d / "chat_template.jinja").write_text("{{ raise_exception('no chats') }}"), "no chats"),
    ],
)
def test_directories_that_can_not_be_served(tmp_path, breaks, words):
    directory = write_directory(tmp_path, CHATML)
    breaks(directory)
    with pytest.raises(ModelError, match=words):
        ChatTokenizer.from_directory(directory)


def test_generation_blocks_and_json_are_read_as_transformers_reads_them(chatml):
    template = "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ {'a': '<é>'} | tojson }}"
    assert ChatTemplate(template, {}).render(chat("x")) == 'x{"a": "<é>"}'
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", {}).render(chat("x"))) == 4
