"""Debate: two solvers answer, each from the reports that it has read; a judge reads everything and decides."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import RunnableLambda
from world import REPORTS, analyst, embedded_model, judge, show

from langchain_agentkv import ChatAgentKV, ReuseReport
from langchain_agentkv.topologies import Member, debate


def solver(model: ChatAgentKV, number: int, reads: Sequence[AnyMessage]) -> Member:
    """Gives its candidate in the words that the judge knows."""
    name = f"solver_{number}"
    asks = replace(analyst(model, "Julia"), name=name)

    def speak(_: dict[str, Any]) -> dict[str, list[AIMessage]]:
        answer = asks.speak(reads).text.removeprefix("Summary: ")
        return {"messages": [AIMessage(f"Candidate {number}: {answer}", name=name)]}

    return RunnableLambda(speak, name=name)


def main() -> None:
    """The second report says that Julia moved; only one of the solvers has read it."""
    report = ReuseReport()
    with embedded_model() as model:
        solvers = [solver(model, 1, REPORTS[:1]), solver(model, 2, REPORTS[:2])]
        graph = debate(solvers, judge(model), rounds=1).compile()
        state = graph.invoke({"messages": REPORTS}, {"callbacks": [report]})
    show(state["messages"], report)


if __name__ == "__main__":
    main()
