"""Debaters speak in rounds, each reading what all said before; then a judge speaks."""

from collections.abc import Sequence
from typing import Any

from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from langchain_agentkv.topologies.agent import Member, member_node, named


class DebateState(MessagesState):
    """The thread, and how many rounds are over."""

    rounds: int


def debate(
    debaters: Sequence[Member], judge: Member, *, rounds: int = 2
) -> StateGraph[DebateState, None, DebateState, DebateState]:
    """START -> all debaters at once -> ... `rounds` times ... -> judge -> END.

    Args:
        debaters: they speak at the same time and read the rounds before.
        judge: reads everything.
        rounds: how often each debater speaks.

    Raises:
        ValueError: no debaters, two agents of one name, or no rounds.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: give at least 1")
    *names, last = named([*debaters, judge])
    if not names:
        raise ValueError("a debate needs debaters beside its judge: give at least one")

    def moderate(state: DebateState) -> Command[Any]:
        over = state.get("rounds", 0)
        return Command(goto=names, update={"rounds": over + 1}) if over < rounds else Command(goto=last)

    graph = StateGraph(DebateState)
    graph.add_node("moderator", moderate, destinations=(*names, last))
    graph.add_edge(START, "moderator")
    for name, debater in zip(names, debaters, strict=True):
        graph.add_node(name, member_node(debater))
    graph.add_edge(names, "moderator")
    graph.add_node(last, member_node(judge))
    graph.add_edge(last, END)
    return graph
