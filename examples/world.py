"""What the examples are about, in the controlled English that the embedded model was trained on, and how they end.

A document in three parts says where people and things are. Researchers report a part each, the analyst and the writer
say where somebody is, the critic says what the reports disagree about.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from langchain_core.messages import AnyMessage, HumanMessage

from agentkv.api import Reuse
from agentkv.embedded import model_directory
from agentkv.service import Service
from agentkv_evals.worlds.demo import demo_case
from agentkv_evals.worlds.roles import (
    CANONICAL,
    CRITIC_INSTRUCTION,
    JUDGE_INSTRUCTION,
    places_question,
    researcher_prompt,
)
from langchain_agentkv import ChatAgentKV, ReuseReport
from langchain_agentkv.topologies import Agent

CASE = demo_case(seed=3, sentences=20)
PARTS = [researcher.task for researcher in CASE.researchers]
REPORTS: list[AnyMessage] = [HumanMessage(each.expected, name=each.name) for each in CASE.researchers]


@contextmanager
def embedded_model() -> Iterator[ChatAgentKV]:
    """The model of this repository in this process, with reuse of what other agents wrote or read."""
    with Service.open(model_directory()) as service:
        yield ChatAgentKV(service=service, reuse=Reuse.SCREENED, max_tokens=400)


def researcher(model: ChatAgentKV, number: int) -> Agent:
    """Reports a part of the document."""
    return Agent(name=f"researcher_{number}", model=model, system=researcher_prompt(number), task=PARTS[number - 1])


def analyst(model: ChatAgentKV, *asked: str) -> Agent:
    """Says where those that are asked for are; asks the thread's last question where none are."""
    return Agent(
        name="analyst", model=model, system=CANONICAL["analyst"], task=places_question([*asked]) if asked else ""
    )


def critic(model: ChatAgentKV, task: str = CRITIC_INSTRUCTION) -> Agent:
    """Says what the reports disagree about.

    It compares all with all, which is what screening loses first: so it reads in full (`Reuse.EXACT`: prefixes only).
    """
    return Agent(name="critic", model=model.bind(reuse=Reuse.EXACT), system=CANONICAL["critic"], task=task)


def judge(model: ChatAgentKV) -> Agent:
    """Says which candidate is right."""
    return Agent(name="judge", model=model, system=CANONICAL["judge"], task=JUDGE_INSTRUCTION)


def writer(model: ChatAgentKV, *asked: str) -> Agent:
    """Answers, and says what is disputed; asks the thread's last question where none are asked for."""
    task = f"{places_question([*asked])} Say what is disputed." if asked else ""
    return Agent(name="writer", model=model, system=CANONICAL["writer"], task=task)


def show(messages: Sequence[AnyMessage], report: ReuseReport) -> None:
    """Print a thread, and where its prompts' tokens came from."""
    for message in messages:
        print(f"{message.name or 'user'}: {message.text}\n")
    print(report)
