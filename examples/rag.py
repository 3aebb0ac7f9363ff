"""RAG: retrieved documents are segments too. Two agents answer from what a vector store finds, in whatever order.

The first to read a document computes its KV; every later prompt reads it where it lies, behind other documents and
another system prompt.
"""

import math
import re
from collections import Counter
from typing import Any, TypedDict
from zlib import crc32

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.graph import START, StateGraph
from world import REPORTS, analyst, embedded_model, writer

from langchain_agentkv import ChatAgentKV, ReuseReport
from langchain_agentkv.topologies import Agent

QUESTIONS = ("Where are Oskar and Julia?", "Where are Karl and Oskar?", "Where are Karl and Lukas?", "Where is Katja?")


class WordEmbeddings(Embeddings):
    """Counts of hashed names: deterministic, and enough to find one. A server's `/v1/embeddings` serves as well."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A unit vector for each text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """A unit vector of 512 dimensions."""
        counts = Counter(crc32(word.encode()) % 512 for word in re.findall(r"[A-Z]\w+", text))
        length = math.sqrt(sum(count * count for count in counts.values())) or 1.0
        return [counts[index] / length for index in range(512)]


class State(TypedDict, total=False):
    """A question, what was found for it, and the answers."""

    question: str
    found: list[AnyMessage]
    analyst: AIMessage
    writer: AIMessage


def rag(model: ChatAgentKV) -> Any:
    """question -> retrieve -> analyst -> writer"""
    documents = [Document(report.text, metadata={"source": report.name}) for report in REPORTS]
    retriever = InMemoryVectorStore.from_documents(documents, WordEmbeddings()).as_retriever(search_kwargs={"k": 2})

    def retrieve(state: State) -> State:
        found = retriever.invoke(state["question"])
        return {"found": [HumanMessage(each.page_content, name=each.metadata["source"]) for each in found]}

    def node(agent: Agent) -> Any:
        return lambda state: {agent.name: agent.speak(state["found"], state["question"])}

    graph = StateGraph(State)
    graph.add_sequence(
        [
            ("retrieve", retrieve),
            ("answer", node(analyst(model))),
            ("check", node(writer(model))),
        ]
    )
    graph.add_edge(START, "retrieve")
    return graph.compile()


def main() -> None:
    """Ask, and say what of each prompt came from documents that some agent had read before."""
    report = ReuseReport()
    with embedded_model() as model:
        graph = rag(model)
        for question in QUESTIONS:
            state = graph.invoke({"question": question}, {"callbacks": [report]})
            print(f"{question} Found: {', '.join(str(each.name) for each in state['found'])}.")
            for reply in (state["analyst"], state["writer"]):
                kv = reply.response_metadata["agentkv"]
                read = f"documents read: {kv['segments']}; tokens not computed: {kv['prefix'] + kv['reused']}"
                print(f"  {reply.name}: {reply.text} ({read})")
    print(f"\n{report}")


if __name__ == "__main__":
    main()
