"""Supervisor: a rule says who is next. `choice_by_model` instead of the rule lets a model choose."""

from langchain_core.messages import AnyMessage
from world import critic, embedded_model, researcher, show, writer

from langchain_agentkv import ReuseReport
from langchain_agentkv.topologies import supervisor

ORDER = ("researcher_1", "researcher_2", "researcher_3", "critic", "writer")


def next_agent(thread: list[AnyMessage]) -> str | None:
    """The first who has not spoken yet."""
    heard = {message.name for message in thread}
    return next((name for name in ORDER if name not in heard), None)


def main() -> None:
    """Three researchers, a critic who reads them, and a writer who reads all."""
    report = ReuseReport()
    with embedded_model() as model:
        team = [*(researcher(model, number) for number in (1, 2, 3)), critic(model), writer(model, "Julia", "Karl")]
        state = supervisor(team, next_agent).compile().invoke({"messages": []}, {"callbacks": [report]})
    show(state["messages"], report)


if __name__ == "__main__":
    main()
