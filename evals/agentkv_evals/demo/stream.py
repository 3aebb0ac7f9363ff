"""The agents' messages on the terminal while the graph runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from langchain_core.messages import AIMessageChunk
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from agentkv_evals.demo.graph import Graph

_TAIL_LINES = 4


def run_graph(graph: Graph, console: Console, known: Mapping[str, str]) -> dict[str, str]:
    """Run a graph and show each message as it is written; returns the messages by agent.

    Args:
        graph: see `build_graph`.
        console: where to.
        known: messages by agent that the reader has seen before: one that is the same is not shown again.
    """
    said: dict[str, str] = {}
    with _writing(console) as writing:
        # LangGraph types its stream as if there were one mode.
        events: Iterator[Any] = graph.stream({"messages": []}, stream_mode=["messages", "updates"])
        for kind, payload in events:
            if kind == "messages":
                chunk, metadata = payload
                # It also passes on the messages that nodes return; those have been shown already.
                if isinstance(chunk, AIMessageChunk):
                    writing.add(metadata["langgraph_node"], chunk)
                continue
            for agent, update in payload.items():
                said[agent] = update["messages"][-1].text
                sources = writing.end(agent)
                console.print(_message(agent, said[agent], sources, seen=known.get(agent) == said[agent]))
    return said


def _message(agent: str, text: str, sources: str, *, seen: bool) -> RenderableType:
    title = Text(agent, style="bold cyan")
    if seen:
        return Padding(Text.assemble(title, f"  the same words; prompt: {sources}"), (0, 1))
    return Panel(
        Text(text),
        title=title,
        title_align="left",
        subtitle=Text(sources, style="dim"),
        subtitle_align="left",
        border_style="dim",
    )


def _sources(chunk: AIMessageChunk) -> str:
    """Where the prompt's tokens came from, as the reply's metadata says it."""
    reuse = chunk.response_metadata["agentkv"]
    parts = [f"{reuse[name]:,} {name}" for name in ("prefix", "reused", "repaired", "computed") if reuse[name]]
    return ", ".join(parts)


class _Writing:
    """The messages that are being written: the last lines of each are shown."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._texts: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def add(self, agent: str, chunk: AIMessageChunk) -> None:
        """Take a piece of a message; the last one carries the metadata."""
        self._texts[agent] = self._texts.get(agent, "") + chunk.text
        if chunk.response_metadata:
            self._sources[agent] = _sources(chunk)
        self._show()

    def end(self, agent: str) -> str:
        """The message is complete; returns where its prompt's tokens came from."""
        self._texts.pop(agent, None)
        self._show()
        return self._sources.pop(agent, "")

    def _show(self) -> None:
        width = max(self._live.console.width - 4, 1)
        self._live.update(Group(*(self._panel(agent, text, width) for agent, text in self._texts.items())))

    def _panel(self, agent: str, text: str, width: int) -> Panel:
        lines = Text(text).wrap(self._live.console, width)[-_TAIL_LINES:]
        return Panel(Text("\n").join(lines), title=f"{agent} ...", title_align="left", border_style="cyan")


@contextmanager
def _writing(console: Console) -> Iterator[_Writing]:
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        yield _Writing(live)
