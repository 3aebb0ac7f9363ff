"""The prompts of a recorded conversation: what each agent had before it when it wrote its reply."""

from collections.abc import Iterator
from dataclasses import dataclass

from agentkv.api import ChatMessage
from agentkv_evals.replay.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One reply to be forced.

    Attributes:
        index: of the reply among the conversation's messages.
        agent: who wrote it.
        prompt: its system prompt and all that had been said before.
        reply: the recorded text.
    """

    index: int
    agent: str
    prompt: tuple[ChatMessage, ...]
    reply: str


def turns_of(trace: Trace) -> Iterator[Turn]:
    """The turns that a model answered, in order. The first message is the task: it answers nothing.

    All of these are group chats (AG2's and Magentic-One's): everybody reads everything that was said before, its own
    words as the assistant, those of the others as a user with a name.
    """
    for index, said in enumerate(trace.messages):
        if index > 0 and said.by_model:
            seen = (
                ChatMessage(
                    role="assistant" if other.agent == said.agent else "user", content=other.content, name=other.agent
                )
                for other in trace.messages[:index]
            )
            prompt = (ChatMessage(role="system", content=system_prompt(said.agent)), *seen)
            yield Turn(index=index, agent=said.agent, prompt=prompt, reply=said.content)


def system_prompt(agent: str) -> str:
    """The system prompt of an agent, made from its name: the recordings have none."""
    duty = agent.removesuffix("_Expert").replace("_", " ")
    return (
        f"You are {agent}, one of several agents who solve a task together in a group chat. Your field is {duty}. "
        "Read the task and what the others have said before you speak. Do your own part of the work, say which agent "
        "should go on and with what, check what others claim before you build on it, and say plainly what you do not "
        "know. When the task is solved and checked, give the final answer in one line and end with TERMINATE."
    )
