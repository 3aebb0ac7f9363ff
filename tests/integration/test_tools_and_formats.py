"""Tools, formats and thoughts with real models: what is asked for is what comes, and what comes back is read again."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentkv.api import ChatMessage, ChatRequest, ResponseFormat, Reuse, ReuseUsage, Tool, ToolCall, ToolUse
from agentkv.collected import CollectedReply
from agentkv.config import ServiceConfig
from agentkv.errors import InvalidRequest
from agentkv.owner import owner_of
from agentkv.service import Service
from small_models import PARAGRAPH
from tool_templates import QWEN, R1

UNITS = {"type": "string", "enum": ["centimetres", "inches"]}
LEVEL = Tool(
    name="water_level",
    description="how high the water stands",
    parameters={
        "type": "object",
        "properties": {"year": {"type": "integer", "minimum": 1900, "maximum": 1999}, "unit": UNITS},
        "required": ["year", "unit"],
        "additionalProperties": False,
    },
)
SHIPS = Tool(name="count_ships")
QUESTION = (ChatMessage(role="system", content="You answer."), ChatMessage(role="user", content=PARAGRAPH))


def open_service(small_model: Callable[[str], Path], directory: Path, template: str) -> Service:
    """The small Qwen2 with another template."""
    shutil.copytree(small_model("qwen2"), directory)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Service.open(directory, ServiceConfig.from_values(kv_memory="64MiB", context_length=2048))


@pytest.fixture(scope="module")
def service(small_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(small_model, tmp_path_factory.mktemp("tools") / "model", QWEN) as service:
        yield service


def ask(service: Service, request: ChatRequest) -> CollectedReply:
    reply = CollectedReply()
    for delta in service.submit(request):
        reply.add(delta)
    service.check()
    return reply


PLAINLY = {"enable_thinking": False}


def request(*messages: ChatMessage, **fields: Any) -> ChatRequest:
    defaults = {"max_tokens": 200, "reuse": Reuse.OFF, "template_options": PLAINLY}
    return ChatRequest(messages=messages, **{**defaults, **fields})


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_have_their_schema(service: Service, seed: int) -> None:
    tools = ToolUse(tools=(LEVEL, SHIPS), choice="required", only=("water_level",), parallel=False)
    reply = ask(service, request(*QUESTION, tools=tools, temperature=1.5, seed=seed))
    assert (reply.finish_reason, reply.text) == ("tool_calls", "")
    (call,) = reply.tool_calls
    arguments = json.loads(call.arguments)
    assert call.name == "water_level"
    assert call.arguments == json.dumps(arguments)
    assert 1900 <= arguments["year"] <= 1999
    assert arguments["unit"] in UNITS["enum"]


def test_several_calls_in_one_reply(service: Service) -> None:
    tools = ToolUse(tools=(LEVEL,), choice="required")
    replies = [ask(service, request(*QUESTION, tools=tools, temperature=1.5, seed=seed)) for seed in range(8)]
    assert max(len(reply.tool_calls) for reply in replies) > 1
    assert {reply.finish_reason for reply in replies} == {"tool_calls"}


def test_auto_leaves_the_model_free_and_none_reads_no_calls(service: Service) -> None:
    call = '<tool_call>\n{"name": "count_ships", "arguments": {}}\n</tool_call>'
    auto = ask(service, request(*QUESTION, tools=ToolUse(tools=(SHIPS,)), forced_reply=f"I count.\n{call}"))
    assert (auto.text, auto.finish_reason) == ("I count.", "tool_calls")
    assert [call.name for call in auto.tool_calls] == ["count_ships"]
    none = ask(service, request(*QUESTION, tools=ToolUse(tools=(SHIPS,), choice="none"), forced_reply=call))
    assert (none.text, none.finish_reason) == (call, "stop")
    assert ask(service, request(*QUESTION, tools=ToolUse(tools=(SHIPS,)), max_tokens=4)).finish_reason == "length"


def test_strict_tools_leave_the_words_free(service: Service) -> None:
    use = ToolUse(tools=(replace(LEVEL, strict=True),))
    plain = ask(service, request(*QUESTION, max_tokens=12))
    assert ask(service, request(*QUESTION, tools=replace(use, choice="none"), max_tokens=12)).finish_reason == "length"
    reply = ask(service, request(*QUESTION, tools=use, max_tokens=12, temperature=1.0, seed=1))
    assert reply.finish_reason == plain.finish_reason == "length"
    assert reply.text
    broken = Tool(name="sort", parameters={"type": "array", "uniqueItems": True}, strict=True)
    with pytest.raises(InvalidRequest, match="sort"):
        ask(service, request(*QUESTION, tools=ToolUse(tools=(LEVEL, broken))))


def test_json_of_a_schema_and_json_at_all(service: Service) -> None:
    schema = {"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]}
    schema["additionalProperties"] = False
    for seed in range(3):
        ask_for = request(*QUESTION, response_format=ResponseFormat(schema=schema), temperature=1.5, seed=seed)
        reply = ask(service, ask_for)
        assert reply.finish_reason == "stop"
        assert set(json.loads(reply.text)) == {"done"}
    reply = ask(service, request(*QUESTION, response_format=ResponseFormat(schema={"type": "object"}), max_tokens=30))
    assert reply.text.startswith("{")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "not"),
        ({"type": "strnig"}, "strnig"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    ],
)
def test_schemas_that_cannot_be_held_to_are_refused(service: Service, schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        service.submit(request(*QUESTION, response_format=ResponseFormat(schema=schema, name="mine")))
    assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_schema")
    assert "mine" in str(caught.value)
    tool = Tool(name="broken", parameters=schema)
    with pytest.raises(InvalidRequest, match="broken"):
        service.submit(request(*QUESTION, tools=ToolUse(tools=(LEVEL, tool), choice="required")))


def modes(service: Service, asked: ChatRequest) -> dict[Reuse, CollectedReply]:
    return {mode: ask(service, replace(asked, reuse=mode, selector="repair_none")) for mode in Reuse}


def screened(service: Service, asked: ChatRequest) -> ReuseUsage:
    usage = ask(service, replace(asked, reuse=Reuse.SCREENED, selector="repair_none")).usage
    assert usage is not None
    return usage.reuse


def test_calls_come_back_as_they_were_said(service: Service) -> None:
    """The words between calls are the model's own: odd spacing, which no client sends back."""
    said = (
        "I look.\n<tool_call>\n"
        '{"name":"water_level","arguments":{"year":1912,   "unit":"inches"}}\n</tool_call><tool_call>'
        '{"name": "count_ships", "arguments": {}}</tool_call>'
    )
    tools = ToolUse(tools=(LEVEL, SHIPS))
    first = ask(service, request(*QUESTION, tools=tools, forced_reply=said, reuse=Reuse.SCREENED, agent="caller"))
    calls = tuple(replace(call, arguments=json.dumps(json.loads(call.arguments))) for call in first.tool_calls)
    history = (
        *QUESTION,
        ChatMessage(role="assistant", content=first.text, tool_calls=calls),
        ChatMessage(role="tool", content="17 centimetres, as the tide tables say", tool_call_id=calls[0].call_id),
    )
    asked = request(*history, tools=tools, max_tokens=12)
    assert said in service._tokenizer.decode(service._prompts.write(asked, owner_of("", "")).token_ids)
    replies = modes(service, asked)
    assert replies[Reuse.EXACT].text == replies[Reuse.OFF].text
    assert replies[Reuse.EXACT].usage.reuse.prefix > len(PARAGRAPH) / 8  # pyright: ignore[reportOptionalMemberAccess]
    other = request(ChatMessage(role="system", content="You are another."), *history[1:], tools=tools, max_tokens=12)
    reuse = screened(service, other)
    assert reuse.segments >= 2  # the question and the reply that called
    spliced = service._prompts.write(other, owner_of("", "")).num_spliced
    assert reuse.reused > 1.5 * spliced > 100  # all of the reply, calls included, and the question


@pytest.mark.parametrize("template", [QWEN, R1], ids=["qwen", "r1"])
def test_thoughts_are_split_off_and_the_answer_is_read_again(
    small_model: Callable[[str], Path], tmp_path: Path, template: str
) -> None:
    thoughts = "First the tide tables, then the ships; the critic will ask for both of them in the end."
    answer = "The water has risen by 17 centimetres since 1912, and 2,306 ships have called at the harbour."
    opening = "" if template == R1 else "<think>\n"
    with open_service(small_model, tmp_path / "model", template) as service:
        said = request(
            *QUESTION,
            template_options={},
            forced_reply=f"{opening}{thoughts}\n</think>\n\n{answer}",
            reuse=Reuse.SCREENED,
        )
        reply = ask(service, said)
        assert (reply.reasoning, reply.text, reply.finish_reason) == (thoughts, answer, "stop")
        assert reply.usage is not None
        assert 0 < reply.usage.reasoning_tokens < reply.usage.completion_tokens
        again = ChatMessage(role="user", content="Are you sure of it?")
        history = (*QUESTION, ChatMessage(role="assistant", content=reply.text), again)
        replies = modes(service, request(*history, max_tokens=12))
        assert replies[Reuse.EXACT].text == replies[Reuse.OFF].text
        assert replies[Reuse.EXACT].reasoning == replies[Reuse.OFF].reasoning
        other = request(ChatMessage(role="system", content="You doubt."), *history[1:], max_tokens=12)
        assert screened(service, other).segments >= 2  # the question and the answer
        assert thoughts not in service._tokenizer.decode(service._prompts.write(other, owner_of("", "")).token_ids)


def test_a_format_lets_the_model_think_first(small_model: Callable[[str], Path], tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    with open_service(small_model, tmp_path / "model", R1) as service:
        compiler = service._grammars
        asked = request(*QUESTION, response_format=ResponseFormat(schema=schema))
        constraint = compiler.constraint(asked, service._prompts.write(asked, ""))
        assert constraint is not None
        for token_id in service._tokenizer.encode('hm, {maybe}\n</think>\n\n{"ok": true}'):
            assert not constraint.is_finished
            constraint.accept(token_id)
        assert constraint.is_finished


def test_calls_of_history_with_broken_arguments_are_text(service: Service) -> None:
    call = ToolCall(call_id="1", name="count_ships", arguments='{"cut of')
    history = (*QUESTION, ChatMessage(role="assistant", content="", tool_calls=(call,)))
    assert ask(service, request(*history, max_tokens=2)).usage is not None


def test_a_text_and_its_tokens_are_continued_as_they_are(service: Service) -> None:
    text = "<|im_start|>user\nWhat?<|im_end|>\n"
    prompt = service._tokenizer.raw_prompt(text)
    assert service._tokenizer.end_of_turn_id in prompt.token_ids
    by_text = ask(service, ChatRequest(prompt=text, max_tokens=8, reuse=Reuse.OFF))
    by_ids = ask(service, ChatRequest(prompt=prompt.token_ids, max_tokens=8, reuse=Reuse.OFF))
    assert by_text.text == by_ids.text
    assert by_text.usage is not None
    assert by_text.usage.prompt_tokens == len(prompt.token_ids)
