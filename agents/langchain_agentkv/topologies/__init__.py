"""Graphs that people reach for, as small builders over any chat model. Each returns a `StateGraph` to compile."""

from langchain_agentkv.topologies.agent import Agent, Member, seen_by
from langchain_agentkv.topologies.debate import debate
from langchain_agentkv.topologies.decisions import FINISH, choice_by_model, plan_by_model
from langchain_agentkv.topologies.map_reduce import map_reduce
from langchain_agentkv.topologies.plan_execute import plan_execute
from langchain_agentkv.topologies.supervisor import supervisor
from langchain_agentkv.topologies.swarm import swarm

__all__ = [
    "FINISH",
    "Agent",
    "Member",
    "choice_by_model",
    "debate",
    "map_reduce",
    "plan_by_model",
    "plan_execute",
    "seen_by",
    "supervisor",
    "swarm",
]
