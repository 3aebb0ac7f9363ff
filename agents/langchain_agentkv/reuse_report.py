"""Where the prompt tokens of each agent came from, collected while an application runs."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from langchain_agentkv.provenance import agent_label

_UNNAMED = "(no agent)"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReuse:
    """Prompt tokens of an agent's calls by source: `prefix` and `reused` were read, `repaired` and `computed` run.

    Where a reply tells no more than `cached_tokens` (`ChatOpenAI`, streaming), all that was read stands as `prefix`.
    """

    calls: int = 0
    prompt: int = 0
    prefix: int = 0
    reused: int = 0
    repaired: int = 0
    completion: int = 0

    @property
    def computed(self) -> int:
        """Prompt tokens that were run and belong to no kept segment."""
        return self.prompt - self.prefix - self.reused - self.repaired

    @property
    def share(self) -> float:
        """The share of the prompt tokens that were read and not run, 0 to 1."""
        return (self.prefix + self.reused) / self.prompt if self.prompt else 0.0

    def __add__(self, other: "AgentReuse") -> "AgentReuse":
        return AgentReuse(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


class ReuseReport(BaseCallbackHandler):
    """A callback that adds up where prompt tokens came from, agent by agent, for any chat model on an agentkv server.

    report = ReuseReport()
    graph.invoke(inputs, {"callbacks": [report]})
    print(report)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers: dict[UUID, str] = {}
        self.agents: dict[str, AgentReuse] = {}

    @property
    def total(self) -> AgentReuse:
        """All agents together."""
        return sum(self.agents.values(), start=AgentReuse())

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - LangChain's signature
        messages: list[list[BaseMessage]],  # noqa: ARG002
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Note who asks."""
        with self._lock:
            self._callers[run_id] = agent_label(metadata or {}) or _UNNAMED

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002
        """Forget who asked."""
        with self._lock:
            self._callers.pop(run_id, None)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """Add a reply's usage."""
        messages = [each.message for each in response.generations[0] if isinstance(each, ChatGeneration)]
        with self._lock:
            caller = self._callers.pop(run_id, _UNNAMED)
            for message in messages:
                if isinstance(message, AIMessage):
                    self.agents[caller] = self.agents.get(caller, AgentReuse()) + _of(message)

    def __str__(self) -> str:
        """A table with a line for each agent."""
        rows = [("agent", "calls", "prompt", "prefix", "reused", "repaired", "computed", "read")]
        everybody = {**self.agents, "all": self.total} if len(self.agents) > 1 else self.agents
        rows += [_row(name, each) for name, each in everybody.items()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(_line(row, widths) for row in rows)


def _of(message: AIMessage) -> AgentReuse:
    usage = message.usage_metadata
    if usage is None:
        return AgentReuse(calls=1)
    sources = _sources(message.response_metadata)
    if sources is None:
        sources = {"prefix": usage.get("input_token_details", {}).get("cache_read", 0)}
    return AgentReuse(
        calls=1,
        prompt=usage["input_tokens"],
        completion=usage["output_tokens"],
        **{name: sources.get(name, 0) for name in ("prefix", "reused", "repaired")},
    )


def _sources(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`usage.agentkv`, where `ChatAgentKV` and where `ChatOpenAI` put it."""
    return metadata.get("agentkv") or (metadata.get("token_usage") or {}).get("agentkv")


def _row(name: str, each: AgentReuse) -> tuple[str, ...]:
    counts = (each.calls, each.prompt, each.prefix, each.reused, each.repaired, each.computed)
    return (name, *(f"{count:,}" for count in counts), f"{each.share:.0%}")


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first, *others = (
        f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join((first, *others)).rstrip()
