"""Unmodified clients that call tools, want JSON, and speak the other APIs: `openai`, `anthropic`, LangChain."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from agentkv.api import ChatDelta, ChatMessage, ResponseFormat, Tool, ToolCall, ToolCallDelta, ToolUse
from agentkv.errors import ContextTooLong
from agentkv.server.settings import ServerSettings
from fakes import FakeService, running_server
from scripted import calls, thinks_answers_and_calls, writes_json

KEY = "client-key"
SHARED = FakeService()
MODEL = "fake/model"
USER: Any = [{"role": "user", "content": "how high?"}]
SCHEMA = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
TOOLS: Any = [{"type": "function", "function": {"name": "level", "description": "how high", "parameters": SCHEMA}}]
LEVEL = Tool(name="level", description="how high", parameters=SCHEMA)
ARGUMENTS = ['{"year": 1912}', '{"year": 1948}']


class Level(BaseModel):
    """How high the water stands."""

    year: int
    unit: Literal["centimetres", "inches"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SHARED, ServerSettings(api_keys=(KEY,))) as url:
        yield url


@pytest.fixture
def service() -> FakeService:
    SHARED.__dict__.update(FakeService().__dict__)
    return SHARED


@pytest.fixture
def client(url: str, service: FakeService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(url: str, service: FakeService) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def test_calls_whole_and_streamed(client: openai.OpenAI, service: FakeService) -> None:
    service.script = thinks_answers_and_calls
    whole = client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS)
    with client.chat.completions.stream(model=MODEL, messages=USER, tools=TOOLS) as stream:
        streamed = stream.get_final_completion()
    for reply in (whole, streamed):
        (choice,) = reply.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
        made: Any = choice.message.tool_calls
        assert [(call.id, call.function.name) for call in made] == [("call_1", "level"), ("call_2", "level")]
        assert [call.function.arguments for call in made] == ARGUMENTS
    assert whole.choices[0].message.model_extra == {"reasoning_content": "Which tool?"}
    assert service.requests[0].tools == ToolUse(tools=(LEVEL,))


def test_the_parse_helper(client: openai.OpenAI, service: FakeService) -> None:
    service.script = writes_json
    reply = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Level)
    assert reply.choices[0].message.parsed == Level(year=1912, unit="inches")
    wanted = service.requests[0].response_format
    assert wanted is not None
    assert wanted.schema["properties"]["unit"]["enum"] == ["centimetres", "inches"]
    service.script = calls
    reply = client.chat.completions.parse(model=MODEL, messages=USER, tools=[openai.pydantic_function_tool(Level)])
    assert service.requests[1].tools is not None
    assert service.requests[1].tools.tools[0].strict


def test_langchain_binds_tools_and_wants_structure(url: str, service: FakeService) -> None:
    model = ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model=MODEL, max_retries=0)  # pyright: ignore
    service.script = thinks_answers_and_calls
    bound = model.bind_tools(TOOLS, tool_choice="level")
    reply: Any = bound.invoke("how high?")
    chunks = list(bound.stream("how high?"))
    total: Any = sum(chunks[1:], chunks[0])
    for message in (reply, total):
        assert [call["args"] for call in message.tool_calls] == [json.loads(arguments) for arguments in ARGUMENTS]
    assert service.requests[0].tools == ToolUse(tools=(LEVEL,), choice="required", only=("level",), parallel=False)
    service.script = writes_json
    assert model.with_structured_output(Level).invoke("how high?") == Level(year=1912, unit="inches")
    assert service.requests[-1].response_format is not None


def test_completions(client: openai.OpenAI, service: FakeService) -> None:
    reply = client.completions.create(model=MODEL, prompt=["one two", "three"], n=2, max_tokens=9, seed=3)
    assert [choice.text for choice in reply.choices] == ["one two", "one two", "three", "three"]
    assert [request.seed for request in service.requests] == [3, 4, 3, 4]
    assert [request.prompt for request in service.requests] == ["one two", "one two", "three", "three"]
    client.completions.create(model=MODEL, prompt=[[5, 6], [7]])
    assert [request.prompt for request in service.requests[4:]] == [(5, 6), (7,)]
    assert service.requests[4].max_tokens == 16
    chunks = list(client.completions.create(model=MODEL, prompt="one two", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "one two"
    assert chunks[-1].usage is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": 5}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 50}, "logprobs"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_completions_that_are_refused(url: str, service: FakeService, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "prompt": "one", **fields}
    answer = httpx.post(f"{url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_responses(client: openai.OpenAI, service: FakeService) -> None:
    reply = client.responses.create(model=MODEL, input="one two three", instructions="be brief", max_output_tokens=9)
    assert (reply.output_text, reply.status) == ("one two three", "completed")
    assert reply.usage is not None
    assert reply.usage.input_tokens_details.cached_tokens > 0
    assert [message.role for message in service.requests[0].messages] == ["system", "user"]
    again = client.responses.create(model=MODEL, input="more", previous_response_id=reply.id)
    assert [(m.role, m.content) for m in service.requests[1].messages] == [
        ("user", "one two three"),
        ("assistant", "one two three"),
        ("user", "more"),
    ]
    assert client.responses.retrieve(again.id).output_text == "more"
    client.responses.delete(reply.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model=MODEL, input="more", previous_response_id=reply.id)
    assert (caught.value.code, caught.value.param) == ("response_not_found", "previous_response_id")
    cut = client.responses.create(model=MODEL, input="one two three", max_output_tokens=2)
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_responses_with_tools_whole_and_streamed(client: openai.OpenAI, service: FakeService) -> None:
    service.script = thinks_answers_and_calls
    flat: Any = [{"type": "function", **TOOLS[0]["function"], "strict": False}]
    whole = client.responses.create(model=MODEL, input="how high?", tools=flat)
    with client.responses.stream(model=MODEL, input="how high?", tools=flat) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    for reply in (whole, streamed):
        assert [item.type for item in reply.output] == ["reasoning", "message", "function_call", "function_call"]
        assert [item.arguments for item in reply.output if item.type == "function_call"] == ARGUMENTS
        assert reply.output_text == "I look."
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == sorted(
        event.sequence_number for event in events if hasattr(event, "sequence_number")
    )
    made: Any = [item.model_dump(exclude_none=True) for item in whole.output]
    answer = {"type": "function_call_output", "call_id": "call_1", "output": "17 cm"}
    client.responses.create(model=MODEL, input=[*USER, *made, answer], tools=flat)
    said = service.requests[-1].messages[1]
    assert (said.content, said.reasoning, len(said.tool_calls)) == ("I look.", "Which tool?", 2)
    assert service.requests[-1].messages[2] == ChatMessage(role="tool", content="17 cm", tool_call_id="call_1")


def test_responses_parse_a_format(client: openai.OpenAI, service: FakeService) -> None:
    service.script = writes_json
    reply = client.responses.parse(model=MODEL, input="how high?", text_format=Level)
    assert reply.output_parsed == Level(year=1912, unit="inches")
    assert isinstance(service.requests[0].response_format, ResponseFormat)


def test_a_response_that_fails_in_the_stream(client: openai.OpenAI, service: FakeService) -> None:
    service.fail_after = 1
    events = list(client.responses.create(model=MODEL, input="one two", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert "the engine failed" in events[-1].response.error.message


ANTHROPIC_TOOLS: Any = [{"name": "level", "description": "how high", "input_schema": SCHEMA}]


def test_messages(claude: anthropic.Anthropic, service: FakeService) -> None:
    reply = claude.messages.create(model=MODEL, max_tokens=9, messages=USER, system="be brief")
    assert [block.text for block in reply.content if block.type == "text"] == ["how high?"]
    assert (reply.stop_reason, reply.usage.output_tokens) == ("end_turn", 2)
    usage = reply.usage
    assert (usage.cache_read_input_tokens or 0) + usage.input_tokens == 17
    assert [message.role for message in service.requests[0].messages] == ["system", "user"]
    with claude.messages.stream(model=MODEL, max_tokens=2, messages=USER) as stream:
        assert "".join(stream.text_stream) == "how high?"
        assert stream.get_final_message().stop_reason == "max_tokens"
    assert claude.messages.count_tokens(model=MODEL, messages=USER).input_tokens == 9


def test_messages_with_tools_whole_and_streamed(claude: anthropic.Anthropic, service: FakeService) -> None:
    service.script = thinks_answers_and_calls
    fields: Any = {"model": MODEL, "max_tokens": 99, "messages": USER, "tools": ANTHROPIC_TOOLS}
    whole = claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    for reply in (whole, streamed):
        assert [block.type for block in reply.content] == ["text", "tool_use", "tool_use"]
        assert [block.input for block in reply.content if block.type == "tool_use"] == [{"year": 1912}, {"year": 1948}]
        assert reply.stop_reason == "tool_use"
    thoughtful = claude.messages.create(**fields, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block.thinking for block in thoughtful.content if block.type == "thinking"] == ["Which tool?"]
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "17 cm"}]}
    history: Any = [*USER, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    claude.messages.create(**{**fields, "messages": history, "tool_choice": {"type": "tool", "name": "level"}})
    request = service.requests[-1]
    assert request.tools == ToolUse(tools=(LEVEL,), choice="required", only=("level",), parallel=False)
    assert request.messages[1].tool_calls[0] == ToolCall(call_id="call_1", name="level", arguments=ARGUMENTS[0])
    assert request.messages[2] == ChatMessage(role="tool", content="17 cm", tool_call_id="call_1")


@pytest.mark.parametrize(
    "arguments", ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": ' + "[" * 100_000, "[1]", '{"a": ']
)
def test_arguments_that_are_no_json_object_are_an_empty_input(
    claude: anthropic.Anthropic, service: FakeService, arguments: str
) -> None:
    call = ToolCallDelta(index=0, call_id="call_1", name="level", arguments=arguments)
    service.script = lambda _: [ChatDelta(tool_calls=(call,))]
    reply = claude.messages.create(model=MODEL, max_tokens=9, messages=USER, tools=ANTHROPIC_TOOLS)
    assert [block.input for block in reply.content if block.type == "tool_use"] == [{}]


def test_errors_of_messages(claude: anthropic.Anthropic, url: str, service: FakeService) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="wrong").messages.create(model=MODEL, max_tokens=9, messages=USER)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="other", max_tokens=9, messages=USER)
    service.refuse = ContextTooLong("too long")
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model=MODEL, max_tokens=9, messages=USER)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    answer = httpx.post(f"{url}/v1/messages", content=b"{", headers={"x-api-key": KEY})
    assert (answer.status_code, answer.json()["type"]) == (400, "error")


def test_a_message_that_fails_in_the_stream(claude: anthropic.Anthropic, service: FakeService) -> None:
    service.fail_after = 1
    with (
        pytest.raises(anthropic.APIStatusError, match="the engine failed"),
        claude.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream,
    ):
        list(stream)
