"""An agent that speaks once when its turn comes, and how it sees what the others have said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableLambda


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A name, instructions and a chat model. Use it as a node (`agent.node()`), or hand it to a topology.

    Attributes:
        name: its label; also the node's name, and the name on its messages.
        model: any chat model, also one with bound arguments.
        system: its system prompt.
        task: what it is asked after the thread's messages, or a function of the thread that says it; empty where the
            thread ends with the question.
    """

    name: str
    model: Runnable[LanguageModelInput, AIMessage]
    system: str = ""
    task: str | Callable[[Sequence[AnyMessage]], str] = ""

    def node(self) -> Runnable[Any, dict[str, list[AnyMessage]]]:
        """A node over `MessagesState`: reads the thread, adds one message."""
        return RunnableLambda(
            lambda state: {"messages": [self.speak(state["messages"])]},
            self._anode,
            name=self.name,
        )

    def speak(self, thread: Sequence[AnyMessage], task: str = "") -> AIMessage:
        """The agent's message after a thread; `task` goes before its own."""
        return self._signed(self._labelled.invoke(self.prompt(thread, task)))

    async def aspeak(self, thread: Sequence[AnyMessage], task: str = "") -> AIMessage:
        """As `speak`."""
        return self._signed(await self._labelled.ainvoke(self.prompt(thread, task)))

    def prompt(self, thread: Sequence[AnyMessage], task: str = "") -> list[BaseMessage]:
        """What the model reads: instructions, the thread as this agent sees it, the task."""
        system = [SystemMessage(self.system)] if self.system else []
        own = self.task if isinstance(self.task, str) else self.task(thread)
        asked = [HumanMessage(text)] if (text := task or own) else []
        return [*system, *seen_by(self.name, thread), *asked]

    @property
    def _labelled(self) -> Runnable[LanguageModelInput, AIMessage]:
        return self.model.with_config(metadata={"lc_agent_name": self.name})

    def _signed(self, reply: AIMessage) -> AIMessage:
        return reply.model_copy(update={"name": self.name})

    async def _anode(self, state: dict[str, Any]) -> dict[str, list[AnyMessage]]:
        return {"messages": [await self.aspeak(state["messages"])]}


Member = Agent | Runnable[Any, Any]
"""An agent of a topology: an `Agent`, or a runnable with a name over `messages` (as `create_agent` makes)."""


def member_node(member: Member) -> Any:
    """What to give to `add_node`."""
    return member.node() if isinstance(member, Agent) else member


def named(members: Sequence[Member]) -> dict[str, Member]:
    """Members by name.

    Raises:
        ValueError: no members, one without a name, or two of one name.
    """
    by_name = {member.name: member for member in members if member.name}
    if not members or len(by_name) < len(members):
        names = ", ".join(repr(member.name) for member in members) or "none"
        raise ValueError(f"a topology needs agents with names of their own, and it has: {names}")
    return by_name


def seen_by(reader: str, thread: Sequence[AnyMessage]) -> list[AnyMessage]:
    """A thread as one of its agents sees it: others' replies are user messages that bear their names.

    Chat templates know one assistant. The KV of a message is found by its text, whatever its role.
    """
    return [_seen(message, reader) for message in thread]


def _seen(message: AnyMessage, reader: str) -> AnyMessage:
    foreign = isinstance(message, AIMessage) and message.name not in (None, reader) and not message.tool_calls
    return HumanMessage(message.content, name=message.name, id=message.id) if foreign else message
