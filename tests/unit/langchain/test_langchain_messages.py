"""LangChain's messages on their way in, and the labels of agents."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from agentkv import api
from agentkv.api import ChatDelta, ReuseUsage, Usage
from agentkv.errors import InvalidRequest
from langchain_agentkv.messages import to_chat_messages
from langchain_agentkv.provenance import Provenance, agent_label
from langchain_agentkv.replies import to_chunk


def test_roles_names_and_parts() -> None:
    messages = [
        SystemMessage("rules"),
        HumanMessage([{"type": "text", "text": "two "}, "parts"], name="alice"),
        AIMessage("report", name="researcher"),
        AIMessage(""),
        ToolMessage("42", tool_call_id="call_1", name="calculator"),
        ChatMessage("more rules", role="developer"),
        ChatMessage("note", role="assistant"),
    ]
    assert to_chat_messages(messages) == (
        api.ChatMessage(role="system", content="rules"),
        api.ChatMessage(role="user", content="two parts", name="alice"),
        api.ChatMessage(role="assistant", content="report", name="researcher"),
        api.ChatMessage(role="assistant", content=""),
        api.ChatMessage(role="tool", content="42", name="calculator", tool_call_id="call_1"),
        api.ChatMessage(role="system", content="more rules"),
        api.ChatMessage(role="assistant", content="note"),
    )
    assert all(type(message.content) is str for message in to_chat_messages(messages))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}]), "content"),
        (HumanMessage([{"type": "tool_use", "id": "1"}]), "content"),
        (FunctionMessage("x", name="f"), "role"),
        (ChatMessage("x", role="robot"), "role"),
        (RemoveMessage(id="1"), "role"),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_name(message: BaseMessage, param: str) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[1\]") as caught:
        to_chat_messages([HumanMessage("x"), message])
    assert caught.value.param == f"messages[1].{param}"


def test_calls_and_thoughts_of_assistants() -> None:
    parts: list[Any] = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "let me see"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"town": "Zürich"}},
    ]
    message = AIMessage(
        parts,
        tool_calls=[{"name": "f", "args": {"town": "Zürich"}, "id": "1"}],
        invalid_tool_calls=[
            {"name": "g", "args": '{"a":', "id": None, "error": "no JSON", "type": "invalid_tool_call"}
        ],
    )
    calls = (
        api.ToolCall(call_id="1", name="f", arguments='{"town": "Zürich"}'),
        api.ToolCall(call_id="call_1", name="g", arguments='{"a":'),
    )
    assert to_chat_messages([message]) == (
        api.ChatMessage(role="assistant", content="let me see", tool_calls=calls, reasoning="hm"),
    )
    thoughtful = AIMessage("x", additional_kwargs={"reasoning_content": "so"})
    assert to_chat_messages([thoughtful])[0].reasoning == "so"


def test_pieces_of_calls_and_thoughts_add_up() -> None:
    pieces = [
        ChatDelta(reasoning="so"),
        ChatDelta(reasoning=" then"),
        ChatDelta(tool_calls=(api.ToolCallDelta(index=0, call_id="1", name="f"),)),
        ChatDelta(tool_calls=(api.ToolCallDelta(index=0, arguments='{"a": '),)),
        ChatDelta(tool_calls=(api.ToolCallDelta(index=0, arguments="1}"),)),
        ChatDelta(tool_calls=(api.ToolCallDelta(index=1, call_id="2", name="g", arguments="{}"),)),
        ChatDelta(finish_reason="tool_calls"),
    ]
    first, *others = [to_chunk(piece, model="m", agent=None).message for piece in pieces]
    total: Any = sum(others, start=first)
    calls = [(call["name"], call["args"], call["id"]) for call in total.tool_calls]
    assert calls == [("f", {"a": 1}, "1"), ("g", {}, "2")]
    assert total.additional_kwargs == {"reasoning_content": "so then"}
    assert [block["type"] for block in total.content_blocks] == ["reasoning", "tool_call", "tool_call"]
    assert total.response_metadata["finish_reason"] == "tool_calls"


def test_the_last_chunk_carries_usage_and_metadata() -> None:
    reuse = ReuseUsage(prefix=2, reused=3, repaired=1, computed=4, misses={"too_short": 1})
    usage = Usage(prompt_tokens=10, completion_tokens=5, reasoning_tokens=2, reuse=reuse, ttft=0.5, duration=1.0)
    last = to_chunk(ChatDelta(text="", finish_reason="length", usage=usage), model="m", agent="writer").message
    assert isinstance(last, AIMessageChunk)
    assert last.usage_metadata is not None
    assert last.response_metadata["finish_reason"] == "length"
    assert last.response_metadata["model_name"] == "m"
    assert last.response_metadata["agentkv"]["misses"] == {"too_short": 1}
    assert last.response_metadata["agentkv"]["ttft"] == 0.5
    assert last.usage_metadata["output_token_details"] == {"reasoning": 2}
    first = to_chunk(ChatDelta(text="x"), model="m", agent="writer").message
    assert (first.text, first.name, first.response_metadata) == ("x", "writer", {})


@pytest.mark.parametrize(
    ("metadata", "label"),
    [
        ({}, None),
        ({"langgraph_node": "writer"}, "writer"),
        ({"langgraph_node": "model", "langgraph_checkpoint_ns": "model:1"}, "model"),
        ({"langgraph_node": "model", "langgraph_checkpoint_ns": "critic:1|model:2"}, "critic"),
        ({"langgraph_node": "call", "langgraph_checkpoint_ns": "agent:1|tools:2|expert:3|call:4"}, "expert"),
        ({"langgraph_node": "model", "langgraph_checkpoint_ns": "critic:1", "lc_agent_name": "boss"}, "boss"),
        ({"langgraph_node": "model", "langgraph_checkpoint_ns": "", "lc_agent_name": None}, "model"),
    ],
)
def test_agent_labels(metadata: dict[str, Any], label: str | None) -> None:
    assert agent_label(metadata) == label


def test_provenance() -> None:
    found = Provenance.of({"langgraph_node": "writer", "thread_id": 7})
    assert (found.agent, found.thread) == ("writer", "7")
    assert Provenance.of({}) == Provenance()
