"""Words: what they give is what the tokenizer gives, or nothing."""

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from agentkv.tokenization.words import _GPT2, Words, is_settled

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "gpt-2": None,
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_END}",
    "llama-3": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
LARGE = ((0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0x20000, 0x10FFFF))
"""Blocks in which all characters are of one kind: the first and the last stand for them."""
INSIDE = {code for first, last in LARGE for code in range(first + 1, last)} | {*range(0xD800, 0xE000)}
SETTLED = [chr(code) for code in range(0x110000) if code not in INSIDE and is_settled(chr(code))]
TEXTS = st.text(st.sampled_from("aAbsStTlLſé 12'’\n\r\t/.!中日🙂\u0301\u00a0\u2028<>|")) | st.text()


def byte_level(pattern: str | None, **model: object) -> Tokenizer:
    """A tokenizer that cuts by a pattern and knows bytes, and a few of their pairs."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    merges = [("a", "b"), ("Ġ", "a"), ("l", "l"), ("s", "t"), ("1", "2"), ("Ġa", "b")]
    tokens = dict.fromkeys([*sorted(letters), *map("".join, merges)])
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges, **model))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    cut = () if pattern is None else (pre_tokenizers.Split(Regex(pattern), "isolated"),)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, last])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<call>")])
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
def test_both_engines_cut_all_settled_characters_alike(pattern):
    """Each between letters, digits, spaces and line breaks, behind an apostrophe, and twice."""
    cut = regex.compile(pattern or _GPT2)
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False) if pattern is None else None
    theirs = theirs or pre_tokenizers.Split(Regex(pattern or ""), "isolated")
    for first in range(0, len(SETTLED), 4000):
        text = "".join(f"a{c}b {c}1{c}  {c}\n{c}{c}'{c}." for c in SETTLED[first : first + 4000])
        assert [m.span() for m in cut.finditer(text)] == [span for _, span in theirs.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_ids_are_the_tokenizers(pattern, texts):
    tokenizer = byte_level(pattern)
    words = Words.of(tokenizer)
    assert words is not None
    for text in (*texts, *texts, " ".join(texts)):
        ids = words.encode(text)
        assert ids is None or ids == tokenizer.encode(text, add_special_tokens=False).ids
        if text.isascii() and "<call>" not in text:
            assert ids is not None


def test_what_words_could_get_wrong_is_left_to_the_tokenizer():
    words = Words.of(byte_level(PATTERNS["qwen2"]))
    assert words is not None
    assert words.encode("a <call> b") is None  # an added token is no text
    assert words.encode("e\u0301") is None  # the tokenizer would compose it
    assert words.encode("a \u0558") is None  # a letter since Unicode 17
    assert words.encode("a <|end|> b") is not None  # a special token is text here


def test_tokenizers_of_other_kinds_have_no_words():
    qwen2 = PATTERNS["qwen2"]
    assert Words.of(byte_level(qwen2, dropout=0.1)) is None
    assert Words.of(byte_level(r"\p{N}{1,3}+|\s+|\S+")) is None  # possessive to one engine, nested to the other
    assert Words.of(byte_level(r"\h+|\H+")) is None  # hexadecimal to one, space to the other
    stripping = byte_level(qwen2)
    stripping.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    assert Words.of(stripping) is None
    spaced = byte_level(qwen2)
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert Words.of(spaced) is None
    whole = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    assert Words.of(whole) is None


def test_words_are_a_tenants_own_and_bounded():
    asked: list[str] = []
    tokenizer = byte_level(None)

    class Counted:
        def encode_batch_fast(self, texts, **options):
            asked.extend(texts)
            return tokenizer.encode_batch_fast(texts, **options)

    words = Words(Counted(), _GPT2, max_words=6)  # type: ignore[arg-type]
    for tenant, text in (("one", "a b c"), ("one", "c a b"), ("two", "a b")):
        assert words.encode(text, tenant) == tokenizer.encode(text).ids
    assert asked == [" b", " c", "a", " a", "c", " b", "a"]
    assert words.num_words == 2  # those of the first were forgotten
    for number in range(100):
        words.encode(f"{number} {'x' * 100}", "three")
        assert words.num_words <= 6
