"""Who speaks: the label of the agent that a call is made for, from what LangGraph puts around it."""

from collections.abc import Mapping
from typing import Any

# Nodes that `create_agent` and `create_react_agent` make inside of an agent: they say what, not who.
_GENERIC_NODES = frozenset({"agent", "model", "tools"})


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
