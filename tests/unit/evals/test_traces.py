"""Recorded conversations: what is read from a file, and what an agent had before it when it spoke."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentkv.api import ChatMessage
from agentkv.errors import ConfigError
from agentkv_evals.replay.trace import read_traces
from agentkv_evals.replay.turns import system_prompt, turns_of


def write(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def say(agent: str, content: str = "words", **more: str) -> dict[str, str]:
    return {"agent": agent, "content": content, **more}


def conversation(*messages: dict[str, str], id_: str = "one") -> dict[str, Any]:
    return {"id": id_, "messages": list(messages)}


def test_agents_read_everything_before_them_and_know_their_own_words(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t.jsonl",
        conversation(
            say("human", "the task"),
            say("Orchestrator (thought)", "a plan"),
            say("Orchestrator (-> WebSurfer)", "go there"),
            say("WebSurfer", "a page\u2028with its own line ends"),
            say("Computer_terminal", "exitcode: 0"),
            say("Orchestrator (termination condition)", "no more"),
            say("Orchestrator (thought)", "done"),
        ),
    )
    (trace,) = read_traces(file)
    turns = list(turns_of(trace))
    assert [(turn.index, turn.agent, turn.reply) for turn in turns] == [
        (1, "Orchestrator", "a plan"),
        (2, "Orchestrator", "go there"),
        (3, "WebSurfer", "a page\u2028with its own line ends"),
        (6, "Orchestrator", "done"),
    ]
    assert turns[2].prompt == (
        ChatMessage(role="system", content=system_prompt("WebSurfer")),
        ChatMessage(role="user", content="the task", name="human"),
        ChatMessage(role="user", content="a plan", name="Orchestrator"),
        ChatMessage(role="user", content="go there", name="Orchestrator"),
    )
    assert [message.role for message in turns[3].prompt] == [
        "system", "user", "assistant", "assistant", "user", "user", "assistant"
    ]  # fmt: skip


def test_tools_and_first_messages_are_no_turns(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", conversation(say("a"), say("b", role="tool"), say("c")), conversation(id_="two"))
    first, empty = read_traces(file)
    assert [turn.agent for turn in turns_of(first)] == ["c"]
    assert list(turns_of(empty)) == []


def test_every_agent_has_a_system_prompt_of_its_own() -> None:
    assert system_prompt("Movie_Expert") == system_prompt("Movie_Expert")
    assert system_prompt("Movie_Expert") != system_prompt("Music_Expert")
    assert "Data Analysis" in system_prompt("Data_Analysis_Expert")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 3"),
        ("[]", "list `messages`"),
        ('{"id": "x"}', "list `messages`"),
        ('{"messages": []}', "no text `id`"),
        ('{"id": "x", "messages": ["text"]}', "messages[0]"),
        ('{"id": "x", "messages": [{"agent": "a", "content": "b"}, {"agent": "a", "content": null}]}', "messages[1]"),
        ('{"id": "x", "messages": [{"agent": " ", "content": "b"}]}', "messages[0]"),
    ],
)
def test_a_broken_line_is_named_and_what_is_expected_said(line: str, said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", conversation(say("a")), "", line)
    with pytest.raises(ConfigError, match="line 3") as caught:
        read_traces(file)
    assert said in str(caught.value)
    assert '"agent"' in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_conversations_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"t\.jsonl"):
        read_traces(file)
