"""Plan-execute: a question is taken apart, an analyst answers the parts one by one, a writer puts them together.

The plan is a rule here; `plan_by_model` lets a model write it.
"""

import re

from langchain_core.messages import AnyMessage, HumanMessage
from world import REPORTS, analyst, embedded_model, show, writer

from langchain_agentkv import ReuseReport
from langchain_agentkv.topologies import plan_execute


def plan(thread: list[AnyMessage]) -> list[str]:
    """A question for each one that the last message asks for."""
    asked = thread[-1].text.removeprefix("Where are ").removesuffix("?")
    return [f"Where is {each}?" for each in re.split(r", | and ", asked)]


def main() -> None:
    """Three reports, and a question about three people."""
    report = ReuseReport()
    with embedded_model() as model:
        graph = plan_execute(plan, analyst(model), writer(model, "Julia", "Leon", "Karl")).compile()
        question = HumanMessage("Where are Julia, Leon and Karl?")
        state = graph.invoke({"messages": [*REPORTS, question]}, {"callbacks": [report]})
    show(state["messages"], report)


if __name__ == "__main__":
    main()
