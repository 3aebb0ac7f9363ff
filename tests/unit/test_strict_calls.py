"""Strict tools where the model is free to call: words are free, a call that has begun obeys."""

import functools
from dataclasses import replace
from typing import Any

import pytest

from agentkv.api import ChatMessage, ChatRequest, Tool, ToolUse
from agentkv.dialect import Speech
from agentkv.grammar import GrammarCompiler
from agentkv.tokenization import ChatTemplate, ChatTokenizer
from chat_tokenizers import CHATML, LLAMA3, train
from tool_templates import LLAMA, QWEN

ADD = Tool(
    name="add",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    strict=True,
)
SHIPS = Tool(name="count_ships", parameters={"type": "object", "properties": {"year": {"type": "integer"}}})
QUESTION = (ChatMessage(role="user", content="How many?"),)


@functools.cache
def compiler(template: str) -> tuple[ChatTokenizer, GrammarCompiler]:
    tokenizer = ChatTokenizer(train(LLAMA3 if template == LLAMA else CHATML), ChatTemplate(template, {"bos_token": ""}))
    return tokenizer, GrammarCompiler(tokenizer, Speech(tokenizer.template))


def says(template: str, reply: str, use: ToolUse, **fields: Any) -> bool:
    """Whether a model that is offered these tools may say this and end."""
    tokenizer, grammars = compiler(template)
    request = ChatRequest(messages=QUESTION, tools=use, **fields)
    constraint = grammars.constraint(
        request, tokenizer.prompt(QUESTION, variables=dict(fields.get("template_options", {})))
    )
    assert constraint is not None
    matcher: Any = constraint._matcher
    return all(matcher.consume_token(token) for token in tokenizer.encode(reply)) and matcher.is_accepting()


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def llama(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


USE = ToolUse(tools=(ADD, SHIPS))
GOOD, BAD = '{"a": 1}', '{"b": 1}'


@pytest.mark.parametrize(
    ("reply", "may"),
    [
        ("", True),
        ("a < b, <tool_cal l> and {}", True),
        (hermes("add", GOOD), True),
        (f"Let me see.\n{hermes('add', GOOD)}\n{hermes('add', GOOD)} So it is.", True),
        (hermes("count_ships", '{"anything": [1]}'), True),
        (hermes("add", BAD), False),
        (f"Let me see.\n{hermes('add', GOOD)}\n{hermes('add', BAD)}", False),
        (hermes("subtract", GOOD), False),
        ("I <tool_call> nothing", False),
    ],
)
def test_hermes(reply: str, may: bool) -> None:
    assert says(QWEN, reply, USE, template_options={"enable_thinking": False}) is may


@pytest.mark.parametrize(
    ("reply", "may"),
    [
        ("", True),
        ("The set {1} has one.", True),
        (llama("add", GOOD), True),
        (f"{llama('add', GOOD)}; {llama('count_ships', BAD)}", True),
        (llama("add", BAD), False),
        (f" <|python_tag|> {llama('add', BAD)}", False),
        ('{"answer": 1}', False),
    ],
)
def test_llama(reply: str, may: bool) -> None:
    assert says(LLAMA, reply, USE) is may


@pytest.mark.parametrize(
    ("reply", "may"),
    [
        ("<think>I <tool_call> nothing</think>\n\nNo.", True),
        (f"<think>Well.</think>\n\n{hermes('add', GOOD)}", True),
        (f"<think>Well.</think>\n\n{hermes('add', BAD)}", False),
    ],
)
def test_thoughts_are_free(reply: str, may: bool) -> None:
    assert says(QWEN, reply, USE) is may


def test_one_call_alone() -> None:
    twice = f"{hermes('add', GOOD)}\n{hermes('add', GOOD)}"
    options = {"enable_thinking": False}
    assert not says(QWEN, twice, replace(USE, parallel=False), template_options=options)
    assert says(QWEN, f"So: {hermes('add', GOOD)}", replace(USE, parallel=False), template_options=options)


def test_tools_that_are_not_strict_need_no_grammar() -> None:
    tokenizer, grammars = compiler(QWEN)
    for use in (ToolUse(tools=(SHIPS,)), ToolUse(tools=(ADD, SHIPS), only=("count_ships",))):
        assert grammars.constraint(ChatRequest(messages=QUESTION, tools=use), tokenizer.prompt(QUESTION)) is None
