"""What each agent's chats did, per tenant: the figures behind `/v1/agentkv/stats`."""

import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, fields
from typing import Any

from agentkv.api import Usage

OTHER = "other"


@dataclass(slots=True)
class AgentFigures:
    """Sums over one agent's finished chats.

    Attributes:
        chats: how many.
        prefix, reused, repaired, computed: prompt tokens by where their KV came from.
        completion_tokens: tokens generated.
        row_layers, full_row_layers: layers run for prompts, and those of full prefill.
        ttft_seconds, queue_seconds: sums; divide by `chats`.
        authors: tokens read from segments, by the agent that wrote them.
        misses: reasons why reuse did not happen.
    """

    chats: int = 0
    prefix: int = 0
    reused: int = 0
    repaired: int = 0
    computed: int = 0
    completion_tokens: int = 0
    row_layers: int = 0
    full_row_layers: int = 0
    ttft_seconds: float = 0.0
    queue_seconds: float = 0.0
    authors: Counter[str] = field(default_factory=Counter)
    misses: Counter[str] = field(default_factory=Counter)

    def add(self, usage: Usage, max_authors: int) -> None:
        """Count a finished chat; authors beyond so many are counted as `other`."""
        reuse = usage.reuse
        self.chats += 1
        for name in ("prefix", "reused", "repaired", "computed", "row_layers", "full_row_layers"):
            setattr(self, name, getattr(self, name) + getattr(reuse, name))
        self.completion_tokens += usage.completion_tokens
        self.ttft_seconds += usage.ttft or 0.0
        self.queue_seconds += usage.queue or 0.0
        for author, count in reuse.authors.items():
            is_told_apart = author in self.authors or len(self.authors) < max_authors
            self.authors[author if is_told_apart else OTHER] += count
        self.misses.update(reuse.misses)

    def shown(self) -> dict[str, Any]:
        """As plain data."""
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        return shown | {"authors": dict(self.authors), "misses": dict(self.misses)}


class AgentStatistics:
    """Figures by tenant and agent label. Thread-safe.

    Args:
        max_agents: labels of one tenant, and authors that one agent reads, that are told apart; later ones are counted
            as `other`.
        max_tenants: the tenant that asked longest ago is forgotten first.
    """

    def __init__(self, *, max_agents: int = 64, max_tenants: int = 1024) -> None:
        self._max_agents = max_agents
        self._max_tenants = max_tenants
        self._of: OrderedDict[str, dict[str, AgentFigures]] = OrderedDict()
        self._lock = threading.Lock()

    def observe(self, tenant: str, usage: Usage) -> None:
        """Count a finished chat."""
        with self._lock:
            agents = self._of.setdefault(tenant, {})
            self._of.move_to_end(tenant)
            if len(self._of) > self._max_tenants:
                self._of.popitem(last=False)
            label = usage.reuse.agent
            if label not in agents and len(agents) >= self._max_agents:
                label = OTHER
            agents.setdefault(label, AgentFigures()).add(usage, self._max_agents)

    def of(self, tenant: str) -> dict[str, dict[str, Any]]:
        """A tenant's figures by agent, as plain data."""
        with self._lock:
            return {agent: figures.shown() for agent, figures in self._of.get(tenant, {}).items()}
