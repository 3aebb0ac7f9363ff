"""The application: an ordinary LangGraph graph. Nothing in it knows about KV; `ChatAgentKV` is its chat model.

START -> researcher_1, researcher_2, researcher_3 -> critic -> writer -> END
"""

from typing import Any

from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from agentkv_evals.demo.case import Agent, Case
from langchain_agentkv import ChatAgentKV

Graph = CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]


def build_graph(case: Case, model: ChatAgentKV) -> Graph:
    """The graph of a case; its state is the list of the agents' messages."""
    graph = StateGraph(MessagesState)
    for agent in case.agents:
        graph.add_node(agent.name, _speak(agent, model))
    researchers = [agent.name for agent in case.researchers]
    for name in researchers:
        graph.add_edge(START, name)
    graph.add_edge(researchers, case.critic.name)
    graph.add_edge(case.critic.name, case.writer.name)
    graph.add_edge(case.writer.name, END)
    return graph.compile()


def _speak(agent: Agent, model: ChatAgentKV):
    """The agent reads its instructions, then what the others have said, then its task, and adds its own message."""
    forced: dict[str, Any] = {} if agent.reply is None else {"forced_reply": agent.reply}

    def speak(state: MessagesState) -> dict[str, list[AnyMessage]]:
        prompt = [SystemMessage(agent.system), *state["messages"], HumanMessage(agent.task)]
        reply = model.invoke(prompt, **forced)
        return {"messages": [HumanMessage(reply.text, name=agent.name)]}

    return speak
