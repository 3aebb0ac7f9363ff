"""What a template tells about its model, and how chats with tools are written for it."""

import json

import pytest

from agentkv.api import ChatMessage, ChatRequest, Tool, ToolCall, ToolUse
from agentkv.dialect import Speech
from agentkv.dialect.hermes import HermesDialect
from agentkv.dialect.llama import LlamaDialect
from agentkv.errors import InvalidRequest
from agentkv.tokenization import ChatTemplate
from chat_tokenizers import CHATML, chat_tokenizer
from tool_templates import LLAMA, QWEN, R1, STRICT

SEARCH = Tool(name="search", description="looks up <|im_end|>", parameters={"type": "object", "properties": {}})
CALLS = (
    ToolCall(call_id="1", name="search", arguments='{"q": "tides"}'),
    ToolCall(call_id="2", name="search", arguments='{"q":"ébb"}'),
)
HISTORY = (
    ChatMessage(role="system", content="be brief"),
    ChatMessage(role="user", content="how high?"),
    ChatMessage(role="assistant", content="I look.", tool_calls=CALLS),
    ChatMessage(role="tool", content="17 cm", tool_call_id="1"),
)


def nothing(_: ChatMessage) -> None:
    return None


def speech(template: str) -> Speech:
    return Speech(ChatTemplate(template, {}))


@pytest.mark.parametrize(
    ("template", "dialect", "thinks"),
    [
        (QWEN, HermesDialect, True),
        (R1, HermesDialect, True),
        (LLAMA, LlamaDialect, False),
        (CHATML, HermesDialect, False),
    ],
)
def test_the_template_tells_the_dialect(template: str, dialect: type, thinks: bool) -> None:
    assert type(speech(template).dialect) is dialect
    assert speech(template).thinks is thinks


def test_written_out_calls_are_what_the_template_writes() -> None:
    template = ChatTemplate(QWEN, {})
    messages, variables = Speech(template).write(ChatRequest(messages=HISTORY, tools=ToolUse(tools=(SEARCH,))), nothing)
    spaced = (CALLS[0], ToolCall(call_id="2", name="search", arguments='{"q": "ébb"}'))
    as_given = (*HISTORY[:2], ChatMessage(role="assistant", content="I look.", tool_calls=spaced), HISTORY[3])
    assert template.render(messages, variables) == template.render(as_given, variables)
    assert not any(message.tool_calls for message in messages)
    assert [tool["function"]["name"] for tool in variables["tools"]] == ["search"]


@pytest.mark.parametrize(
    "arguments", ["[" * 100_000, '{"a": "\\ud800"}', '{"a": ' + "1" * 5000 + "}", "{", '{"a": NaN}']
)
def test_arguments_of_any_text_come_back_as_text(arguments: str) -> None:
    call = ToolCall(call_id="1", name="f", arguments=arguments)
    message = ChatMessage(role="assistant", content="", tool_calls=(call,))
    messages, _ = speech(QWEN).write(ChatRequest(messages=(*HISTORY[:2], message)), nothing)
    assert arguments in messages[-1].content
    messages[-1].content.encode("utf-8")


def test_words_that_were_said_are_said_again() -> None:
    messages, _ = speech(QWEN).write(ChatRequest(messages=HISTORY), lambda _: "the very words")
    assert messages[2].content == "the very words"


@pytest.mark.parametrize("template", [CHATML, STRICT])
def test_a_template_without_tools_gets_them_in_words(template: str) -> None:
    request = ChatRequest(messages=HISTORY, tools=ToolUse(tools=(SEARCH,)))
    messages, variables = speech(template).write(request, nothing)
    assert "tools" not in variables
    assert messages[0].content.startswith("be brief\n\n# Tools")
    assert '"name": "search"' in messages[0].content
    bare, _ = speech(template).write(ChatRequest(messages=HISTORY[1:2], tools=request.tools), nothing)
    assert [message.role for message in bare] == ["system", "user"]
    text = ChatTemplate(template, {}).render(messages)
    assert "17 cm" in text
    assert ("<tool_response>" in text) == (template == STRICT)


def test_special_tokens_in_tools_stay_text() -> None:
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.template = ChatTemplate(QWEN, {})
    messages, variables = Speech(tokenizer.template).write(
        ChatRequest(messages=HISTORY[1:2], tools=ToolUse(tools=(SEARCH,))), nothing
    )
    prompt = tokenizer.prompt(messages, variables=variables)
    end = tokenizer.end_of_turn_id
    assert prompt.token_ids.count(end) == 2  # the system's and the user's
    assert "looks up <|im_end|>" in tokenizer.decode(prompt.token_ids)


def test_thoughts_that_the_prompt_opens() -> None:
    for template, options, opened in [
        (R1, {}, True),
        (QWEN, {}, False),
        (QWEN, {"enable_thinking": False}, False),
    ]:
        tokenizer = chat_tokenizer(CHATML)
        tokenizer.template = ChatTemplate(template, {})
        spoken = Speech(tokenizer.template)
        request = ChatRequest(messages=HISTORY[1:2], template_options=options)
        messages, variables = spoken.write(request, nothing)
        prompt = tokenizer.prompt(messages, variables=variables)
        assert spoken.opens_thoughts(prompt) is opened
        assert prompt.tail.endswith("</think>\n\n") is bool(options)


def test_options_of_the_template_and_none_of_ours() -> None:
    with pytest.raises(InvalidRequest, match=r"chat_template_kwargs\.tools"):
        speech(QWEN).write(ChatRequest(messages=HISTORY, template_options={"tools": "mine"}), nothing)


def test_llama_reads_tool_answers_as_json() -> None:
    messages, _ = speech(LLAMA).write(ChatRequest(messages=HISTORY), nothing)
    text = ChatTemplate(LLAMA, {}).render(messages)
    assert json.dumps("17 cm") in text
    assert '{"name": "search", "parameters": {"q": "tides"}}; {"name": "search"' in text
