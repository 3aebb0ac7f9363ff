"""Tools and structured output of `ChatAgentKV`: what the service is asked, and what comes back."""

from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from agentkv.api import ChatDelta, ChatRequest, ResponseFormat, ToolCallDelta, ToolUse
from agentkv.errors import InvalidRequest
from fakes import FakeService
from langchain_agentkv import ChatAgentKV
from langchain_agentkv.tools import response_format


@tool
def weather(town: str) -> str:
    """The weather in a town."""
    return f"sun in {town}"


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="how it begins")
    punchline: str


def says(*pieces: str | ChatDelta) -> FakeService:
    return FakeService(script=lambda _: pieces)


def call(name: str, arguments: str) -> ChatDelta:
    return ChatDelta(tool_calls=(ToolCallDelta(index=0, call_id="1", name=name, arguments=arguments),))


JOKE = '{"setup": "why?", "punchline": "because"}'


def asked_with(choice: Any = None, **bound: Any) -> ToolUse:
    service = FakeService()
    ChatAgentKV(service=service).bind_tools([weather, Joke], tool_choice=choice, **bound).invoke("hi")
    (request,) = service.requests
    assert request.tools is not None
    return request.tools


def test_tools_are_given_with_their_schemas() -> None:
    first, second = asked_with().tools
    assert (first.name, first.description) == ("weather", "The weather in a town.")
    assert first.parameters is not None
    assert first.parameters["properties"] == {"town": {"type": "string"}}
    assert (second.name, second.strict) == ("Joke", False)
    assert asked_with(strict=True).tools[0].strict


@pytest.mark.parametrize(
    ("choice", "kind", "only"),
    [
        (None, "auto", ()),
        (False, "auto", ()),
        ("none", "none", ()),
        (True, "required", ()),
        ("any", "required", ()),
        ("required", "required", ()),
        ("weather", "required", ("weather",)),
        ({"type": "function", "function": {"name": "Joke"}}, "required", ("Joke",)),
    ],
)
def test_choices(choice: Any, kind: str, only: tuple[str, ...]) -> None:
    asked = asked_with(choice)
    assert (asked.choice, asked.only, asked.parallel) == (kind, only, not only)


def test_one_call_at_a_time() -> None:
    assert not asked_with(parallel_tool_calls=False).parallel


@pytest.mark.parametrize("choice", ["nonsense", {"type": "function", "function": {"name": "nonsense"}}])
def test_choices_that_are_no_tool(choice: Any) -> None:
    with pytest.raises(InvalidRequest, match="nonsense") as caught:
        asked_with(choice)
    assert caught.value.param == "tool_choice"


async def test_calls_come_back_whole_and_in_pieces() -> None:
    pieces = (
        ChatDelta(tool_calls=(ToolCallDelta(index=0, call_id="1", name="weather", arguments=""),)),
        ChatDelta(tool_calls=(ToolCallDelta(index=0, arguments='{"town": '),)),
        ChatDelta(tool_calls=(ToolCallDelta(index=0, arguments='"Rome"}'),)),
    )
    model = ChatAgentKV(service=says(*pieces)).bind_tools([weather])
    expected = [{"name": "weather", "args": {"town": "Rome"}, "id": "1", "type": "tool_call"}]
    reply = model.invoke("hi")
    assert reply.tool_calls == expected
    assert reply.response_metadata["finish_reason"] == "tool_calls"
    assert (await model.ainvoke("hi")).tool_calls == expected
    chunks: list[Any] = [chunk async for chunk in model.astream("hi")]
    assert [chunk.tool_call_chunks[0]["args"] for chunk in chunks[:3]] == ["", '{"town": ', '"Rome"}']
    assert weather.invoke(reply.tool_calls[0]).content == "sun in Rome"


async def test_a_call_that_was_cut_off_is_no_call() -> None:
    model = ChatAgentKV(service=says(call("weather", '{"town": "Ro'))).bind_tools([weather])
    for reply in (model.invoke("hi"), await model.ainvoke("hi")):
        assert reply.tool_calls == []
        assert [(each["name"], each["args"]) for each in reply.invalid_tool_calls] == [("weather", '{"town": "Ro')]


def test_json_of_a_schema() -> None:
    service = says(JOKE[:10], JOKE[10:])
    model = ChatAgentKV(service=service).with_structured_output(Joke)
    assert model.invoke("hi") == Joke(setup="why?", punchline="because")
    assert list(model.stream("hi")) == [Joke(setup="why?", punchline="because")]
    asked = service.requests[0].response_format
    assert asked is not None
    assert asked.name == "Joke"
    assert asked.schema["required"] == ["setup", "punchline"]
    assert service.requests[0].tools is None


def test_json_of_a_dictionary_streams_as_it_grows() -> None:
    model = ChatAgentKV(service=says(JOKE[:10], JOKE[10:])).with_structured_output(Joke.model_json_schema())
    *_, last = model.stream("hi")
    assert last == model.invoke("hi") == {"setup": "why?", "punchline": "because"}


def test_json_mode_holds_to_an_object_only() -> None:
    service = says(JOKE)
    assert ChatAgentKV(service=service).with_structured_output(Joke, method="json_mode").invoke("hi") == Joke(
        setup="why?", punchline="because"
    )
    assert service.requests[0].response_format == ResponseFormat(schema={"type": "object"}, name="json_object")


@pytest.mark.parametrize("schema", [Joke, Joke.model_json_schema()])
def test_arguments_of_a_call(schema: Any) -> None:
    service = says(call("Joke", JOKE))
    joke: Any = ChatAgentKV(service=service).with_structured_output(schema, method="function_calling").invoke("hi")
    assert joke == (Joke(setup="why?", punchline="because") if schema is Joke else joke)
    asked = service.requests[0].tools
    assert asked is not None
    assert (asked.choice, asked.only, asked.parallel) == ("required", ("Joke",), False)


def test_raw_replies_and_parsing_errors() -> None:
    good = ChatAgentKV(service=says(JOKE)).with_structured_output(Joke, include_raw=True).invoke("hi")
    assert (good["raw"].text, good["parsed"], good["parsing_error"]) == (
        JOKE,
        Joke(setup="why?", punchline="because"),
        None,
    )
    bad = ChatAgentKV(service=says("{}")).with_structured_output(Joke, include_raw=True).invoke("hi")
    assert bad["parsed"] is None
    assert isinstance(bad["parsing_error"], OutputParserException)


def test_what_structured_output_does_not_know() -> None:
    model = ChatAgentKV(service=FakeService())
    with pytest.raises(ValueError, match="'guided'"):
        model.with_structured_output(Joke, guided=True)
    with pytest.raises(ValueError, match="json_schema, function_calling or json_mode"):
        model.with_structured_output(Joke, method="magic")  # pyright: ignore


def test_response_formats_that_ask_for_nothing() -> None:
    assert response_format(None) is None
    assert response_format({"type": "text"}) is None


def test_nothing_of_the_call_is_lost_in_process() -> None:
    """The answer of a tool goes back with the call that it answers."""
    service = FakeService(script=answer_after_call)
    model = ChatAgentKV(service=service).bind_tools([weather])
    first = model.invoke("weather?")
    answer = weather.invoke(first.tool_calls[0])
    assert model.invoke([("user", "weather?"), first, answer]).text == "sun in Rome"
    _, spoken, told = service.requests[-1].messages
    assert [(each.call_id, each.name, each.arguments) for each in spoken.tool_calls] == [
        ("1", "weather", '{"town": "Rome"}')
    ]
    assert (told.role, told.tool_call_id, told.content) == ("tool", "1", "sun in Rome")


def answer_after_call(request: ChatRequest) -> list[str | ChatDelta]:
    last = request.messages[-1]
    return [last.content] if last.role == "tool" else [call("weather", '{"town": "Rome"}')]
