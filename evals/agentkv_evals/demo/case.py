"""What the demo's agents are told and given to read; in the authored case, also what they say."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from agentkv_evals.worlds.demo import DemoAgent, demo_case


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent of the demo.

    Attributes:
        name: its label.
        system: its system prompt.
        task: what it is asked, after the messages of the others; a researcher's holds its part of the document.
        reply: text that is forced as its reply; None lets the model write.
    """

    name: str
    system: str
    task: str
    reply: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A document and the agents that work on it: researchers in parallel, then a critic, then a writer.

    Attributes:
        title: the question that the agents answer together.
        max_tokens: most tokens of a reply; None leaves it to the model.
    """

    title: str
    researchers: tuple[Agent, ...]
    critic: Agent
    writer: Agent
    max_tokens: int | None = None

    @property
    def agents(self) -> tuple[Agent, ...]:
        """All agents, in the order in which they speak."""
        return (*self.researchers, self.critic, self.writer)


def harbour_case(*, authored: bool) -> Case:
    """The report on a harbour town's water.

    Args:
        authored: force the texts written for it, for a model that can't write.
    """
    content = tomllib.loads(files("agentkv_evals.demo").joinpath("harbour.toml").read_text(encoding="utf-8"))
    return Case(
        title=content["title"],
        researchers=tuple(_agent(fields, authored) for fields in content["researchers"]),
        critic=_agent(content["critic"], authored),
        writer=_agent(content["writer"], authored),
        max_tokens=600,
    )


_SENTENCES = 24
"""Statements in a part of the document: near the most that the model was trained on."""


def world_case(seed: int) -> Case:
    """A held-out world in the words that the repository's model was trained on; the model writes the replies."""
    world = demo_case(seed, sentences=_SENTENCES)
    return Case(
        title=world.title,
        researchers=tuple(_of_world(agent) for agent in world.researchers),
        critic=_of_world(world.critic),
        writer=_of_world(world.writer),
        max_tokens=600,
    )


def _of_world(agent: DemoAgent) -> Agent:
    return Agent(name=agent.name, system=agent.system, task=agent.task)


def _agent(fields: dict[str, Any], authored: bool) -> Agent:
    reply = fields["reply"].strip() if authored else None
    return Agent(name=fields["name"], system=fields["system"].strip(), task=fields["task"].strip(), reply=reply)
