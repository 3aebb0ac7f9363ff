"""Where the tokens came from, agent by agent."""

from typing import Any

from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage

from fakes import FakeService
from langchain_agentkv import AgentReuse, ChatAgentKV, ReuseReport


def asked_by(name: str, report: ReuseReport) -> Any:
    return {"metadata": {"lc_agent_name": name}, "callbacks": [report]}


async def test_counts_add_up_by_agent() -> None:
    report = ReuseReport()
    model = ChatAgentKV(service=FakeService())
    model.invoke("12345678", asked_by("critic", report))
    await model.ainvoke("1234", asked_by("critic", report))
    list(model.stream("1234", asked_by("writer", report)))
    model.invoke("1234", {"callbacks": [report]})
    one = AgentReuse(calls=1, prompt=4, prefix=1, reused=1, repaired=1, completion=1)
    assert report.agents == {
        "critic": AgentReuse(calls=2, prompt=12, prefix=3, reused=3, repaired=3, completion=2),
        "writer": one,
        "(no agent)": one,
    }
    assert (report.total.prompt, report.total.computed, report.total.share) == (20, 5, 0.5)


def test_the_table_has_a_line_for_each_agent() -> None:
    report = ReuseReport()
    for name in ("critic", "writer"):
        ChatAgentKV(service=FakeService()).invoke("1234", asked_by(name, report))
    header, *rows = str(report).splitlines()
    assert header.split() == ["agent", "calls", "prompt", "prefix", "reused", "repaired", "computed", "read"]
    assert [row.split() for row in rows] == [
        ["critic", "1", "4", "1", "1", "1", "1", "50%"],
        ["writer", "1", "4", "1", "1", "1", "1", "50%"],
        ["all", "2", "8", "2", "2", "2", "2", "50%"],
    ]


def test_models_that_tell_less_count_as_well() -> None:
    usage: Any = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10, "input_token_details": {"cache_read": 6}}
    replies = [AIMessage("a", usage_metadata=usage), AIMessage("b")]
    report = ReuseReport()
    model = FakeMessagesListChatModel(responses=replies)
    for _ in replies:
        model.invoke("x", asked_by("a", report))
    assert report.agents == {"a": AgentReuse(calls=2, prompt=9, prefix=6, completion=1)}
