"""Conversations of several agents, made by lot or recorded: rounds of prompts, each with the replies before it.

Fan-in: agents work side by side on a task, each with a text of its own; then one reads what all of them said.
All-gather: in every round each agent reads what all have found and said before. Recorded ones are group chats, one
agent after the other.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agentkv.api import ChatMessage
from agentkv_evals.random_model import standard_prose
from agentkv_evals.replay.trace import Trace
from agentkv_evals.replay.turns import turns_of


class Load(StrEnum):
    """Conversations made by lot."""

    FAN_IN = "fan-in"
    ALL_GATHER = "all-gather"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt of a conversation.

    Attributes:
        agent: who answers.
        messages: the prompt.
        reply: the words that are to come; None leaves them to the model.
        max_tokens: most tokens of a reply that is the model's own.
    """

    agent: str
    messages: tuple[ChatMessage, ...]
    reply: str | None = None
    max_tokens: int | None = None


Rounds = Iterator[Sequence[Ask]]
"""What is asked at once, round by round; between rounds `Conversation.said` gets the replies in the same order."""


@dataclass(slots=True, kw_only=True)
class Conversation:
    """One conversation under way.

    Attributes:
        name: unique in a run; a tenant of its own, so that conversations share nothing.
        rounds: what is asked.
        said: replies of the last round.
    """

    name: str
    rounds: Rounds
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """Sizes of conversations made by lot.

    Attributes:
        agents: fewest and most agents.
        tokens: fewest and most tokens of a message.
        reply_tokens: fewest and most tokens of a reply; None is as many as of a message.
        num_rounds: rounds of a conversation.
        count: tokens of a text.
    """

    agents: tuple[int, int]
    tokens: tuple[int, int]
    reply_tokens: tuple[int, int] | None = None
    num_rounds: int
    count: Callable[[str], int]


class Maker:
    """Makes conversations of one load: the same number, the same conversation, whoever answers it."""

    def __init__(self, load: Load, lot: Lot, *, seed: int) -> None:
        self._load = load
        self._lot = lot
        self._seed = seed
        self._sentences = _sentences()
        self._tokens_per_word = lot.count(" ".join(self._sentences[:200])) / sum(
            len(each.split()) for each in self._sentences[:200]
        )

    def __call__(self, number: int, name: str) -> Conversation:
        """The conversation of this number."""
        lot = random.Random(f"{self._seed} {number}")
        conversation = Conversation(name=name, rounds=iter(()))
        rounds = self._fan_in if self._load is Load.FAN_IN else self._all_gather
        conversation.rounds = rounds(conversation, lot)
        return conversation

    def _fan_in(self, conversation: Conversation, lot: random.Random) -> Rounds:
        """Each round: all agents but the first read the task, what the first one concluded, and a find of their own;
        then the first reads what they found and said."""
        agents = self._agents(lot)
        history = [self._message(lot)]
        for _ in range(self._lot.num_rounds):
            finds = [self._message(lot, agent) for agent in agents[1:]]
            yield [self._ask(lot, agent, [*history, find]) for agent, find in zip(agents[1:], finds, strict=True)]
            yield [self._ask(lot, agents[0], [*history, *_heard(finds, conversation.said)])]
            history += _heard([ChatMessage(role="user", content="", name=agents[0])], conversation.said)

    def _all_gather(self, conversation: Conversation, lot: random.Random) -> Rounds:
        """Each round: all agents read the task, what all found and said before, and a find of their own."""
        agents = self._agents(lot)
        history = [self._message(lot)]
        for _ in range(self._lot.num_rounds):
            finds = [self._message(lot, agent) for agent in agents]
            yield [self._ask(lot, agent, [*history, find]) for agent, find in zip(agents, finds, strict=True)]
            history += _heard(finds, conversation.said)

    def _agents(self, lot: random.Random) -> list[str]:
        return [f"agent_{number}" for number in range(lot.randint(*self._lot.agents))]

    def _ask(self, lot: random.Random, agent: str, messages: Sequence[ChatMessage]) -> Ask:
        """The agent's own system prompt stands first, and its turn last."""
        duty = random.Random(agent).sample(self._sentences, 8)
        system = ChatMessage(role="system", content=f"You are {agent}. " + " ".join(duty))
        turn = ChatMessage(role="user", content=f"It is your turn, {agent}: say what you make of it.")
        return Ask(
            agent=agent,
            messages=(system, *messages, turn),
            max_tokens=lot.randint(*self._lot.reply_tokens or self._lot.tokens),
        )

    def _message(self, lot: random.Random, name: str | None = None) -> ChatMessage:
        """A text of a length by lot, of sentences by lot."""
        words, wanted = [], lot.randint(*self._lot.tokens) / self._tokens_per_word
        while len(words) < wanted:
            words += lot.choice(self._sentences).split()
        return ChatMessage(role="user", name=name, content=" ".join(words[: max(1, round(wanted))]))


def replays(traces: Sequence[Trace]) -> Callable[[int, str], Conversation]:
    """Recorded conversations, over and over; their replies are forced."""

    def make(number: int, name: str) -> Conversation:
        turns = turns_of(traces[number % len(traces)])
        return Conversation(
            name=name,
            rounds=iter([[Ask(agent=turn.agent, messages=turn.prompt, reply=turn.reply)] for turn in turns]),
        )

    return make


def _heard(finds: Sequence[ChatMessage], said: Sequence[str]) -> list[ChatMessage]:
    """What agents found, each with what it said of it."""
    pairs = zip(finds, said, strict=True)
    messages = (m for find, text in pairs for m in (find, ChatMessage(role="user", content=text, name=find.name)))
    return [message for message in messages if message.content]


def _sentences() -> list[str]:
    """Sentences of the language reference, a few thousand."""
    sentences: list[str] = []
    for text in standard_prose():
        sentences += [part.strip() + "." for part in " ".join(text.split()).split(". ") if 4 < len(part.split()) < 40]
        if len(sentences) > 2_000:
            break
    return sentences
