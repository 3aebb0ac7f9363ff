"""Applications that know nothing of agentkv, on a running server with the embedded model.

Each runs with full prefill, with exact prefixes and with screened segments: exact gives the very same threads as full
prefill, and what is reused is counted agent by agent. Who is next is fixed by the tool choice on the wire; the call
itself is the model's reply, decoded under the server's constraint.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm
from pydantic import BaseModel

from agentkv.embedded import model_directory
from agentkv.service import Service
from agentkv_evals.worlds.demo import demo_case
from agentkv_evals.worlds.roles import CANONICAL
from fakes import running_server
from langchain_agentkv import ReuseReport

MODEL = "agentkv-embedded"
CASE = demo_case(seed=3, sentences=20)
REPORTS = [HumanMessage(each.expected, name=each.name) for each in CASE.researchers]
QUESTIONS = ("Where are Julia and Karl?", "Where is Leon?")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Service.open(model_directory()) as service, running_server(service) as url:
        yield f"{url}/v1"


class Routed(ChatOpenAI):
    """`ChatOpenAI` whose calls go by a list: the n-th call since the user spoke must be that of a tool, or none."""

    route: tuple[str, ...] = ()

    def _get_request_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        payload = super()._get_request_payload(*args, **kwargs)
        if payload.get("tools"):
            names = [tool["function"]["name"] for tool in payload["tools"]]
            step = _calls_of_turn(payload["messages"], names)
            chosen = self.route[step] if step < len(self.route) else None
            payload["tool_choice"] = {"type": "function", "function": {"name": chosen}} if chosen else "none"
        return payload


def _calls_of_turn(messages: list[dict[str, Any]], names: list[str]) -> int:
    """How many of these tools have been called since the user's last question."""
    start = max(index for index, message in enumerate(messages) if message.get("content") in QUESTIONS)
    calls = [call["function"]["name"] for message in messages[start:] for call in message.get("tool_calls") or ()]
    return sum(name in names for name in calls)


def agent(model: ChatOpenAI, role: Any, tools: Any = (), **options: Any) -> Any:
    return create_agent(model, list(tools), system_prompt=CANONICAL[role], name=role, **options)


def chat_openai(model: Routed) -> Any:
    def node(role: Any) -> Callable[[MessagesState], dict[str, Any]]:
        return lambda state: {"messages": [model.invoke([("system", CANONICAL[role]), *state["messages"]])]}

    graph = StateGraph(MessagesState)
    graph.add_sequence([("analyst", node("analyst")), ("writer", node("writer"))])
    graph.add_edge(START, "analyst")
    return graph.compile(checkpointer=InMemorySaver())


def one_agent(model: Routed) -> Any:
    @tool
    def archive() -> str:
        """Where earlier reports are."""
        return str(REPORTS[0].content)

    routed = model.model_copy(update={"route": ("archive",)})
    return agent(routed, "analyst", [archive], checkpointer=InMemorySaver())


def supervisor(model: Routed) -> Any:
    team = [agent(model, "analyst"), agent(model, "writer")]
    routed = model.model_copy(update={"route": ("transfer_to_analyst", "transfer_to_writer")})
    graph = create_supervisor(team, model=routed, prompt="You are the supervisor.", add_handoff_back_messages=False)
    return graph.compile(checkpointer=InMemorySaver())


def swarm(model: Routed) -> Any:
    routed = model.model_copy(update={"route": ("transfer_to_writer",)})
    analyst = agent(routed, "analyst", [create_handoff_tool(agent_name="writer")])
    writer = agent(model, "writer", [create_handoff_tool(agent_name="analyst")])
    return create_swarm([analyst, writer], default_active_agent="analyst").compile(checkpointer=InMemorySaver())


def played(build: Callable[[Routed], Any], url: str, reuse: str) -> tuple[list[str], ReuseReport]:
    """Two turns of a thread: what was said, and what was reused."""
    extra = {"agentkv": {"reuse": reuse, "selector": "query_attention(0.2)"}, "cache_salt": f"{build.__name__}-{reuse}"}
    model = Routed(
        base_url=url,
        api_key="none",  # pyright: ignore[reportArgumentType]
        model=MODEL,
        temperature=0,
        max_tokens=48,  # pyright: ignore[reportCallIssue]
        max_retries=0,
        extra_body=extra,
    )
    report = ReuseReport()
    graph, config = build(model), {"configurable": {"thread_id": "1"}, "callbacks": [report]}
    graph.invoke({"messages": [*REPORTS, HumanMessage(QUESTIONS[0])]}, config)
    state = graph.invoke({"messages": [HumanMessage(QUESTIONS[1])]}, config)
    said = [f"{message.name}: {message.text} {_called(message)}" for message in state["messages"]]
    return said, report


def _called(message: Any) -> list[Any]:
    return [(call["name"], call["args"]) for call in getattr(message, "tool_calls", [])]


@pytest.mark.filterwarnings("ignore::langgraph.warnings.LangGraphDeprecatedSinceV10")  # langgraph-supervisor's own
@pytest.mark.parametrize("build", [chat_openai, one_agent, supervisor, swarm])
def test_exact_says_what_full_prefill_says_and_reuse_happens(build: Callable[[Routed], Any], url: str) -> None:
    off, nothing = played(build, url, "off")
    exact, prefixes = played(build, url, "exact")
    assert exact == off
    _, screened = played(build, url, "screened")
    print(f"\n{build.__name__}, exact:\n{prefixes}\n{build.__name__}, screened:\n{screened}")
    assert nothing.total.share == 0
    assert prefixes.total.share > 0.1
    assert all(
        each.share > 0.1 for each in screened.agents.values() if each.calls > 1
    )  # who speaks first reads nothing kept
    assert screened.total.share > prefixes.total.share


class Place(BaseModel):
    """Where Karl is."""

    place: Literal["hut", "market", "terrace"]


def test_the_openai_sdk(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        told = {mode: _conversation(client, mode) for mode in ("off", "exact", "screened")}
    assert [each.said for each in told["exact"]] == [each.said for each in told["off"]]
    for mode, replies in told.items():
        print(f"\nopenai, {mode}: " + ", ".join(f"{each.agent} {each.cached / each.prompt:.0%}" for each in replies))
    cached = {mode: [each.cached for each in replies] for mode, replies in told.items()}
    assert cached["off"] == [0] * 5
    assert min(cached["exact"][2:]) > 300, "what the analyst asks later, by whatever helper, reads its first prompt"
    assert cached["screened"][1] > 200, "the writer reads the reports that the analyst has read"


@dataclass(frozen=True)
class Told:
    """A reply, and how many of its prompt's tokens were read."""

    agent: str
    said: object
    cached: int
    prompt: int


def _conversation(client: openai.OpenAI, mode: str) -> list[Told]:
    """Analyst, writer, and the analyst again; then by the helpers for streams and for parsed replies."""
    told = []
    for role, question in (("analyst", QUESTIONS[0]), ("writer", QUESTIONS[0]), ("analyst", QUESTIONS[1])):
        reply = client.chat.completions.create(**_asking(role, question, mode))
        told.append(_told(role, reply))
    with client.chat.completions.stream(**_asking("analyst", QUESTIONS[1], mode)) as stream:
        pieces = "".join(event.delta for event in stream if event.type == "content.delta")
        streamed = stream.get_final_completion()
    assert pieces == streamed.choices[0].message.content == told[2].said
    told.append(_told("analyst", streamed))
    parsed = client.chat.completions.parse(**_asking("analyst", "Where is Karl?", mode), response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    return [*told, _told("analyst", parsed)]


def _asking(role: Any, question: str, mode: str) -> dict[str, Any]:
    thread: list[Any] = [{"role": "user", "content": each.content, "name": each.name} for each in REPORTS]
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": CANONICAL[role]}, *thread, {"role": "user", "content": question}],
        "max_tokens": 48,
        "temperature": 0,
        "extra_body": {"agentkv": {"reuse": mode}, "cache_salt": f"sdk-{mode}"},
    }


def _told(agent: str, reply: Any) -> Told:
    usage = reply.usage
    return Told(agent, reply.choices[0].message.content, usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens)
