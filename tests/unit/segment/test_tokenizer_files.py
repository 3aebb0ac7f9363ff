"""Tokenizers that are not one tokenizer.json: SentencePiece models, tokens added beside it, several templates."""

import io
import json
import pydoc_data.topics
from pathlib import Path

import pytest
import sentencepiece

from agentkv.errors import ModelError
from agentkv.tokenization import ChatTokenizer, tokenizer_files
from chat_tokenizers import CHATML, chat, write_directory

INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


# What Llama's was trained with; SentencePiece's own defaults change the text, which LlamaTokenizer does not do.
LLAMA_OPTIONS = {
    "normalization_rule_name": "identity",
    "split_digits": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}


def write_sentencepiece(directory: Path, **options: object) -> Path:
    """As Llama 2's first checkpoints were: tokenizer.model and no tokenizer.json."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(list(pydoc_data.topics.topics.values())[:8]).splitlines()),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": INST,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def sentencepiece_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("sentencepiece"), **LLAMA_OPTIONS)


def test_a_sentencepiece_model_is_converted(sentencepiece_directory: Path) -> None:
    ours = ChatTokenizer.from_directory(sentencepiece_directory)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_directory / "tokenizer.model"))
    for text in ("The value is a list of 12 objects", "naïve 日本語 🙂", "two  spaces\nand lines"):
        assert list(ours.encode(text)) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.stop_token_ids == {theirs.eos_id()}
    messages = chat("The statement evaluates", "an object", "and the target", roles=("user", "assistant"))
    prompt = ours.prompt(messages)
    assert prompt.token_ids[0] == theirs.bos_id()
    assert [m.text for m in prompt.messages] == [m.content for m in messages]
    said = ours.decode(prompt.token_ids[prompt.messages[1].start : prompt.messages[1].end])
    assert said.strip() in ("an object", "object")  # the first token may hold the space before it


def test_a_conversion_that_reads_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"can't be converted: .* otherwise than SentencePiece does; use a version"):
        ChatTokenizer.from_directory(write_sentencepiece(tmp_path))


def test_what_a_conversion_needs_is_named(sentencepiece_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"sentencepiece and google\.protobuf must be there: pip install 'agentkv\[se"):
        ChatTokenizer.from_directory(sentencepiece_directory)


def test_a_model_that_can_not_be_converted(tmp_path: Path, sentencepiece_directory: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((sentencepiece_directory / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, and transformers can't convert its tokenizer: "):
        ChatTokenizer.from_directory(tmp_path)


def test_tokens_that_only_tokenizer_config_json_adds(tmp_path: Path) -> None:
    directory = write_directory(tmp_path, CHATML)
    plain = ChatTokenizer.from_directory(directory)
    size = plain.num_tokens
    added = {str(size): {"content": "<|call|>", "special": True}, str(size + 1): {"content": "<think>"}}
    write_directory(tmp_path, CHATML, added_tokens_decoder=added)
    ours = ChatTokenizer.from_directory(directory)
    assert ours.num_tokens == size + 2
    assert ours.encode("<think>") == (size + 1,)
    assert size not in ours.encode("<|call|>")  # text that spells a special token is text
    assert ours.decode([size, size + 1]) == "<think>"
    write_directory(tmp_path, CHATML, added_tokens_decoder={str(size + 7): {"content": "<|far|>", "special": True}})
    with pytest.raises(ModelError, match=rf"'<\|far\|>' the id {size + 7}, and the tokenizer {size}"):
        ChatTokenizer.from_directory(directory)


def test_several_templates_without_a_default_are_listed(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}]
    directory = write_directory(tmp_path, CHATML, chat_template=named)
    with pytest.raises(ModelError, match=r"templates named rag, tool_use, and none named default: copy"):
        ChatTokenizer.from_directory(directory)
    write_directory(tmp_path, CHATML, chat_template=None)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}), encoding="utf-8")
    assert ChatTokenizer.from_directory(directory).is_fenced
