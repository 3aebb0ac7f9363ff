"""A supervisor decides who speaks next, after each message, until it ends."""

from collections.abc import Sequence
from typing import Any

from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from langchain_agentkv.topologies.agent import Member, member_node, named
from langchain_agentkv.topologies.decisions import Choice, decision


def supervisor(
    members: Sequence[Member], choose: Choice, *, name: str = "supervisor"
) -> StateGraph[MessagesState, None, MessagesState, MessagesState]:
    """START -> supervisor -> a member -> supervisor -> ... -> END.

    Args:
        members: the agents.
        choose: who is next, from the thread so far; None ends (see `decisions`).
        name: of the deciding node.

    Raises:
        ValueError: no members, or two of one name (or none); when run, a choice that is no member.
    """
    by_name = named(members)
    choice = decision(choose)

    def goto(chosen: str | None) -> Command[Any]:
        if chosen is not None and chosen not in by_name:
            raise ValueError(f"the supervisor chose {chosen!r}: choose one of {', '.join(by_name)}, or None to end")
        return Command(goto=chosen or END)

    async def adecide(state: MessagesState) -> Command[Any]:
        return goto(await choice.ainvoke(state["messages"]))

    graph = StateGraph(MessagesState)
    decide = RunnableLambda(lambda state: goto(choice.invoke(state["messages"])), adecide, name=name)
    graph.add_node(name, decide, destinations=(*by_name, END))
    graph.add_edge(START, name)
    for each, member in by_name.items():
        graph.add_node(each, member_node(member))
        graph.add_edge(each, name)
    return graph
