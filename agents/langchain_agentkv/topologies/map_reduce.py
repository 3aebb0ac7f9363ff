"""One agent for each item, all at once; then one that reads what they found."""

from collections.abc import Callable
from typing import Any, TypedDict

from langchain_core.messages import AnyMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send

from langchain_agentkv.topologies.agent import Agent, Member, member_node, named


class MapReduceState(MessagesState):
    """The thread, and the items to work on."""

    items: list[str]


class _Item(TypedDict):
    number: int
    text: str


def map_reduce(
    mapper: Callable[[int, str], Agent], reducer: Member, *, name: str = "map"
) -> StateGraph[MapReduceState, None, MapReduceState, MapReduceState]:
    """START -> an agent for each of `items`, at once -> reducer -> END.

    Args:
        mapper: from an item's number (from 1) and text to the agent that works on it; the agent sees its own prompt
            alone, and its message joins the thread.
        reducer: reads the thread: the messages of all items, in the order of the items.
        name: of the mapping node.
    """
    (last,) = named([reducer])

    def fan_out(state: MapReduceState) -> list[Send] | str:
        items = [_Item(number=number, text=text) for number, text in enumerate(state["items"], start=1)]
        return [Send(name, item) for item in items] or last

    def work(item: _Item) -> dict[str, list[AnyMessage]]:
        return {"messages": [mapper(item["number"], item["text"]).speak([])]}

    async def awork(item: _Item) -> dict[str, list[AnyMessage]]:
        return {"messages": [await mapper(item["number"], item["text"]).aspeak([])]}

    graph = StateGraph(MapReduceState)
    mapping: Any = RunnableLambda(work, awork, name=name)
    graph.add_node(name, mapping)
    graph.add_node(last, member_node(reducer))
    graph.add_conditional_edges(START, fan_out, [name, last])
    graph.add_edge(name, last)
    graph.add_edge(last, END)
    return graph
