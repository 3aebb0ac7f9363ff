"""Who speaks, and in which thread: what LangGraph's run metadata says of a model call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Nodes that `create_agent` and `create_react_agent` make inside of an agent: they say what, not who.
_GENERIC_NODES = frozenset({"agent", "model", "tools"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a model call comes from.

    Attributes:
        agent: label of the agent that the call is made for, None outside of LangGraph.
        thread: LangGraph's thread (`configurable.thread_id`), None without a checkpointer's.
    """

    agent: str | None = None
    thread: str | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Provenance":
        """What the metadata of a run says."""
        thread = metadata.get("thread_id")
        return cls(agent=agent_label(metadata), thread=None if thread is None else str(thread))


def agent_label(metadata: Mapping[str, Any]) -> str | None:
    """The agent's label from the metadata of a run, None outside of LangGraph.

    First `lc_agent_name` (set by `create_agent`); else the outermost node of the checkpoint namespace, as in
    `researcher:UUID|model:UUID`, that does not have one of LangGraph's generic names; else the node.
    """
    if name := metadata.get("lc_agent_name"):
        return str(name)
    namespace = str(metadata.get("langgraph_checkpoint_ns") or "")
    nodes = [part.partition(":")[0] for part in namespace.split("|")]
    named = [node for node in nodes if node and node not in _GENERIC_NODES]
    return named[0] if named else metadata.get("langgraph_node")
