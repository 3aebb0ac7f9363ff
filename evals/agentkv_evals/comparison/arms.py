"""One way of answering (an *arm*), and the record of one answer: its usage, and the logits behind a forced reply."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from agentkv.api import ChatMessage, ChatRequest, ChatService, Reuse, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way of answering. Arms have tenants of their own, so that none reads what another has kept.

    Attributes:
        reuse: how much kept KV may be read.
        selector: rule that chooses the repaired rows; None takes the service's.
        tenant: whose KV.
    """

    reuse: Reuse
    selector: str | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of one arm.

    Attributes:
        usage: counts and times.
        logits: float32 chunks [n_i, vocabulary], one row for each token of the forced reply and its end of turn.
    """

    usage: Usage
    logits: tuple[torch.Tensor, ...]

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        assert self.usage.ttft is not None, "a finished answer has a first token"
        return self.usage.ttft


def ask(service: ChatService, arm: Arm, request: ChatRequest) -> Answer:
    """Let an arm answer `request`, and wait for the end."""
    selector = arm.selector if arm.reuse is Reuse.SCREENED else None
    stream = service.submit(replace(request, reuse=arm.reuse, selector=selector), tenant=arm.tenant)
    logits = []
    usage = None
    for delta in stream:
        if delta.logits is not None:
            logits.append(delta.logits)
        usage = delta.usage or usage
    assert usage is not None, "a stream ends with its usage"
    return Answer(usage=usage, logits=tuple(logits))


def rotated(arms: Sequence[Arm], turn: int) -> list[Arm]:
    """The arms in the order of this turn: each is first equally often, so none gains from a warm cache."""
    first = turn % len(arms)
    return [*arms[first:], *arms[:first]]


def warm_up(service: ChatService) -> None:
    """Answer one prompt and forget it: the first forward pass of a process is slow, whoever runs it."""
    request = ChatRequest(messages=(ChatMessage(role="user", content="warm up " * 200),), max_tokens=1)
    ask(service, Arm(reuse=Reuse.OFF, tenant="warm-up"), request)
