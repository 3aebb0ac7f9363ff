"""Swarm: agents hand over to each other; whoever spoke last hears the user's next message."""

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from world import REPORTS, analyst, critic, embedded_model, show

from langchain_agentkv import ReuseReport
from langchain_agentkv.topologies import swarm


def hand_over(thread: list[AnyMessage]) -> str | None:
    """A question about agreement is the critic's, one about places the analyst's; nobody takes over from an answer."""
    last = thread[-1]
    if isinstance(last, AIMessage):
        return None
    return "critic" if "agree" in last.text else "analyst"


def main() -> None:
    """Three turns of one thread over three reports."""
    report = ReuseReport()
    with embedded_model() as model:
        graph = swarm([analyst(model), critic(model, task="")], hand_over).compile(checkpointer=InMemorySaver())
        config = RunnableConfig(configurable={"thread_id": "1"}, callbacks=[report])
        graph.invoke({"messages": [*REPORTS, HumanMessage("Where are Julia and Karl?")]}, config)
        graph.invoke({"messages": [HumanMessage("Do the reports agree?")]}, config)
        state = graph.invoke({"messages": [HumanMessage("Where is Leon?")]}, config)
    show(state["messages"], report)


if __name__ == "__main__":
    main()
