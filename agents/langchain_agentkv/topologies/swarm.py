"""Agents that hand over to each other; the one that spoke last hears the user's next message."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from langchain_agentkv.topologies.agent import Member, member_node, named
from langchain_agentkv.topologies.decisions import Choice, decision


class SwarmState(MessagesState):
    """The thread, and who is at work; with a checkpointer it lives on to the user's next message."""

    active_agent: str


def swarm(
    members: Sequence[Member], hand_over: Choice, *, first: str | None = None
) -> StateGraph[SwarmState, None, SwarmState, SwarmState]:
    """START -> the active agent, or the one that it hands over to -> ... -> END.

    Args:
        members: the agents.
        hand_over: from the thread to who takes over, asked after the user's message and after each agent's; None
            leaves a user's message to the active agent, and ends the turn after an agent's.
        first: who is active at the beginning; None takes the first member.

    Raises:
        ValueError: no members, two of one name (or none), or a `first` that is none of them; when run, a choice that
            is no member.
    """
    by_name = named(members)
    start = first or next(iter(by_name))
    if start not in by_name:
        raise ValueError(f"first is {start!r}: give one of {', '.join(by_name)}")
    choice = decision(hand_over)

    def goto(state: SwarmState, chosen: str | None) -> Command[Any]:
        if chosen is None and isinstance(state["messages"][-1], AIMessage):
            return Command(goto=END)
        agent = chosen or state.get("active_agent") or start
        if agent not in by_name:
            raise ValueError(
                f"handed over to {agent!r}: choose one of {', '.join(by_name)}, or None to hand over to none"
            )
        return Command(goto=agent, update={"active_agent": agent})

    async def ahand(state: SwarmState) -> Command[Any]:
        return goto(state, await choice.ainvoke(state["messages"]))

    graph = StateGraph(SwarmState)
    hand = RunnableLambda(lambda state: goto(state, choice.invoke(state["messages"])), ahand, name="hand_over")
    graph.add_node("hand_over", hand, destinations=(*by_name, END))
    graph.add_edge(START, "hand_over")
    for name, member in by_name.items():
        graph.add_node(name, member_node(member))
        graph.add_edge(name, "hand_over")
    return graph
