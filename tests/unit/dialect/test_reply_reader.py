"""Replies read as they come: whatever the pieces, the same meaning, and nothing given out that has to be taken back."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkv.api import ChatDelta
from agentkv.collected import CollectedReply
from agentkv.dialect.hermes import HermesDialect
from agentkv.dialect.llama import LlamaDialect
from agentkv.dialect.reply_reader import ReplyReader
from agentkv.dialect.tool_dialect import ToolDialect

HERMES, LLAMA = HermesDialect(), LlamaDialect()


def read(pieces: list[str], dialect: ToolDialect | None = None, *, thinks: bool = False, opened: bool = False) -> Any:
    """What a client has put together at the end: reasoning, text, calls."""
    reader, collected = ReplyReader(thinks=thinks, opened=opened, dialect=dialect), CollectedReply()
    for piece in [*map(reader.feed, pieces), reader.finish()]:
        collected.add(ChatDelta(text=piece.text, reasoning=piece.reasoning, tool_calls=piece.tool_calls))
    assert reader.content == collected.text
    assert reader.calls == collected.tool_calls
    assert len({call.call_id for call in collected.tool_calls}) == len(collected.tool_calls)
    return collected.reasoning, collected.text, [(call.name, call.arguments) for call in collected.tool_calls]


NO_CALLS = [
    '{"name": "\\x", "arguments": {}}',
    '{"name": "\\ud800", "arguments": {}}',
    '{"name": "a\tb", "arguments": {}}',
    '{"arguments": {"a": "\\ud800"}, "name": "f"}',
    '{"arguments": ' + "[" * 20_000 + "]" * 20_000 + ', "name": "f"}',
    '{"arguments": "\\ud800", "name": "f"}',
]


@pytest.mark.parametrize("written", NO_CALLS, ids=range(len(NO_CALLS)))
def test_an_object_that_no_text_can_hold_is_content(written: str) -> None:
    for dialect, text in ((LLAMA, written), (HERMES, tag(written))):
        _, content, calls = read([text], dialect)
        assert (content.strip(), calls) == (text, [])
        content.encode("utf-8")


def tag(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


F = '{"name": "f", "arguments": {"a": "</tool_call> \\"}{", "b": [1, {"c": 2}]}}'
ARGUMENTS = '{"a": "</tool_call> \\"}{", "b": [1, {"c": 2}]}'
HERMES_CASES = [
    ("Hello.\n", "Hello.\n", []),
    (" two  spaces ", " two  spaces ", []),
    (tag(F), "", [("f", ARGUMENTS)]),
    (f"Let me look.\n{tag(F)}\n{tag(F)}", "Let me look.", [("f", ARGUMENTS)] * 2),
    (tag('{"arguments": {"x": 1}, "name": "g"}'), "", [("g", '{"x": 1}')]),
    (tag('{"name": "g", "arguments": "{\\"x\\": 1}"}'), "", [("g", '{"x": 1}')]),
    (tag('{"name": "g"}'), "", [("g", "{}")]),
    (tag("no call at all"), tag("no call at all"), []),
    (tag('{"nome": "g"}'), '<tool_call>\n{"nome": "g"}\n</tool_call>', []),
    ('<tool_call>\n{"name": "f", "arguments": {"a": "cut', "", [("f", '{"a": "cut')]),
    ('<tool_call>\n{"na', '<tool_call>\n{"na', []),
    ("a < b and <tool", "a < b and <tool", []),
]
BRACE = '{"b": "}"}'
LLAMA_CASES = [
    ('{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    ('<|python_tag|>{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
    (
        '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"b": "}"}}\n',
        "",
        [("f", "{}"), ("g", '{"b": "}"}')],
    ),
    ("The answer is {42}.", "The answer is {42}.", []),
    ('{"result": 42} is it', '{"result": 42} is it', []),
    ('{"name": "f", "parameters": {"a": ', "", [("f", '{"a": ')]),
    ("{ never closed", "{ never closed", []),
]


@pytest.mark.parametrize(
    ("dialect", "text", "content", "calls"),
    [(HERMES, *case) for case in HERMES_CASES] + [(LLAMA, *case) for case in LLAMA_CASES],
)
def test_a_reply_means_the_same_in_one_piece_and_in_characters(
    dialect: ToolDialect, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert read([text], dialect) == ("", content, calls)
    assert read(list(text), dialect) == ("", content, calls)


def test_arguments_stream_as_they_come() -> None:
    reader = ReplyReader(thinks=False, opened=False, dialect=HERMES)
    pieces = ['<tool_call>\n{"name": "f", "argu', 'ments": {"a', '": 1', "}}\n</tool_call>"]
    deltas = [call for piece in pieces for call in reader.feed(piece).tool_calls]
    assert [(delta.name, delta.arguments) for delta in deltas] == [
        ("f", ""),
        (None, '{"a'),
        (None, '": 1'),
        (None, "}"),
    ]


def test_without_a_dialect_all_is_content() -> None:
    assert read(list(tag(F))) == ("", tag(F), [])


THOUGHTS = [
    ("<think>\nhm, <b>\n</think>\n\nThe answer.", False, "hm, <b>", "The answer."),
    ("hm\n</think>\n\nThe answer.", True, "hm", "The answer."),
    ("\n\n</think>\n\nThe answer. ", True, "", "The answer. "),
    (" The answer.", False, "", " The answer."),
    ("<thin air", False, "", "<thin air"),
    ("never done", True, "never done", ""),
    ("<think>never do</thi", False, "never do</thi", ""),
    ("<think>a</think>", False, "a", ""),
    ("<think>a</think>b</think><think>", False, "a", "b</think><think>"),
]


@pytest.mark.parametrize(("text", "opened", "reasoning", "answer"), THOUGHTS)
def test_thoughts_are_split_off(text: str, opened: bool, reasoning: str, answer: str) -> None:
    assert read([text], thinks=True, opened=opened) == (reasoning, answer, [])
    assert read(list(text), thinks=True, opened=opened) == (reasoning, answer, [])


def test_thoughts_then_content_then_calls() -> None:
    text = f"<think>which tool?</think>\n\nI look.\n{tag(F)}"
    for pieces in ([text], list(text)):
        assert read(pieces, HERMES, thinks=True) == ("which tool?", "I look.", [("f", ARGUMENTS)])


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "{", "}", '"', "\\", F, " ", "\n", "x"])
    ),
    st.integers(1, 7),
    st.sampled_from([HERMES, LLAMA]),
)
def test_pieces_never_matter(parts: list[str], size: int, dialect: ToolDialect) -> None:
    text = "".join(parts)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert read(pieces, dialect, thinks=True) == read([text], dialect, thinks=True)


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_calls_that_are_written_are_read_back(arguments: dict[str, Any]) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    for dialect in (HERMES, LLAMA):
        reader = ReplyReader(thinks=False, opened=False, dialect=dialect)
        reader.feed(f"{dialect.shape.before}f{dialect.shape.between}{written}{dialect.shape.after}")
        reader.finish()
        assert [(call.name, json.loads(call.arguments)) for call in reader.calls] == [("f", arguments)]
        assert dialect.shape.write(reader.calls) == reader.spoken
