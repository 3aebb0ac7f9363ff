"""A plan is made, its steps are worked off one after the other, and somebody writes the answer."""

from typing import Any

from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_agentkv.topologies.agent import Agent, Member, member_node, named
from langchain_agentkv.topologies.decisions import Plan, decision


class PlanState(MessagesState):
    """The thread, and the steps that are left."""

    steps: list[str]


def plan_execute(plan: Plan, executor: Agent, finisher: Member) -> StateGraph[PlanState, None, PlanState, PlanState]:
    """START -> plan -> executor, once for each step -> finisher -> END.

    Args:
        plan: from the thread to the steps (see `decisions`).
        executor: is asked each step after the thread with the steps before.
        finisher: reads the whole thread and answers.
    """
    worker, last = named([executor, finisher])
    planner = decision(plan)

    async def amake(state: PlanState) -> dict[str, Any]:
        return {"steps": await planner.ainvoke(state["messages"])}

    def work(state: PlanState) -> dict[str, Any]:
        step, *left = state["steps"]
        return {"messages": [executor.speak(state["messages"], step)], "steps": left}

    async def awork(state: PlanState) -> dict[str, Any]:
        step, *left = state["steps"]
        return {"messages": [await executor.aspeak(state["messages"], step)], "steps": left}

    def after(state: PlanState) -> str:
        return worker if state["steps"] else last

    graph = StateGraph(PlanState)
    make: Any = RunnableLambda(lambda state: {"steps": planner.invoke(state["messages"])}, amake, name="plan")
    graph.add_node("plan", make)
    executing: Any = RunnableLambda(work, awork, name=worker)
    graph.add_node(worker, executing)
    graph.add_node(last, member_node(finisher))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", after, [worker, last])
    graph.add_conditional_edges(worker, after, [worker, last])
    graph.add_edge(last, END)
    return graph
