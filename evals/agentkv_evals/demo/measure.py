"""The demo's figures: each agent's prompt is asked again, without and with reuse in turn, one at a time.

In the graph the researchers run at the same time and wait for each other; here nobody waits, so the times of both ways
compare like with like. The reply of the full-prefill run is forced in both, so their logits compare as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agentkv.api import Reuse, Usage
from agentkv.service import Service
from agentkv_evals.comparison.arms import Answer, Arm, ask, rotated
from agentkv_evals.comparison.fidelity import Fidelity, compare
from agentkv_evals.demo.recording import Exchange

SLOTS_PER_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFigures:
    """What one agent's prompt cost.

    Attributes:
        agent: its label.
        usage: of the answer with reuse.
        ttft_full, ttft_reuse: seconds to the first token with full prefill and with reuse, best of the rounds.
        bytes_alone: KV of prompt and reply where every agent keeps a copy of its own.
        bytes_shared: KV that this agent added to what was kept already.
        fidelity: of the logits with reuse to full prefill's.
    """

    agent: str
    usage: Usage
    ttft_full: float
    ttft_reuse: float
    bytes_alone: int
    bytes_shared: int
    fidelity: Fidelity

    @property
    def ttft_ratio(self) -> float:
        """How many times sooner the first token comes with reuse."""
        return self.ttft_full / self.ttft_reuse


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    full: Answer
    reuse: Answer
    added_bytes: int


def measure(
    service: Service, exchanges: Mapping[str, Exchange], agents: Sequence[str], selector: str, rounds: int = 3
) -> list[AgentFigures]:
    """Ask every prompt again, `rounds` times, each round in tenants of its own.

    Args:
        service: answers; nobody else may use it meanwhile, or what it keeps can't be told apart.
        exchanges: prompts and replies of the full-prefill run, by agent.
        agents: in the order in which they spoke.
        selector: rule of the screened way.
    """
    found: dict[str, list[_Round]] = {agent: [] for agent in agents}
    for number in range(rounds):
        arms = (
            Arm(reuse=Reuse.OFF, tenant=f"measure-off-{number}"),
            Arm(reuse=Reuse.SCREENED, selector=selector, tenant=f"measure-screened-{number}"),
        )
        for index, agent in enumerate(agents):
            found[agent].append(_ask_both(service, exchanges[agent], rotated(arms, number + index)))
    block_bytes = service.memory().block_bytes
    return [_figures(agent, found[agent], block_bytes) for agent in agents]


def _ask_both(service: Service, exchange: Exchange, arms: Sequence[Arm]) -> _Round:
    request = replace(exchange.request, forced_reply=exchange.reply, return_logits=True, cache_salt="")
    answers: dict[Reuse, Answer] = {}
    added: dict[Reuse, int] = {}
    for arm in arms:
        before = service.memory().kept_bytes
        answers[arm.reuse] = ask(service, arm, request)
        added[arm.reuse] = service.memory().kept_bytes - before
    return _Round(full=answers[Reuse.OFF], reuse=answers[Reuse.SCREENED], added_bytes=added[Reuse.SCREENED])


def _figures(agent: str, rounds: Sequence[_Round], block_bytes: int) -> AgentFigures:
    usage = rounds[0].reuse.usage
    num_blocks = -(-(usage.prompt_tokens + usage.completion_tokens) // SLOTS_PER_BLOCK)
    return AgentFigures(
        agent=agent,
        usage=usage,
        ttft_full=min(each.full.ttft for each in rounds),
        ttft_reuse=min(each.reuse.ttft for each in rounds),
        bytes_alone=num_blocks * block_bytes,
        bytes_shared=rounds[0].added_bytes,
        fidelity=compare(rounds[0].full.logits, rounds[0].reuse.logits),
    )
