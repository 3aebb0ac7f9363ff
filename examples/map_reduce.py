"""Map-reduce: a researcher for each part of a document, at once; then an analyst who reads all reports."""

from world import PARTS, analyst, embedded_model, researcher, show

from langchain_agentkv import ReuseReport
from langchain_agentkv.topologies import map_reduce


def main() -> None:
    """Where are two people and a thing, of which the parts of a document tell?"""
    report = ReuseReport()
    with embedded_model() as model:
        asks = analyst(model, "Julia", "Leon", "Karl")
        graph = map_reduce(lambda number, _: researcher(model, number), asks).compile()
        state = graph.invoke({"items": PARTS}, {"callbacks": [report]})
    show(state["messages"], report)


if __name__ == "__main__":
    main()
