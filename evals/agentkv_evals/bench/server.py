"""`agentkv bench server`: time to first token at an HTTP client, against the engine's own and the same chat in process.

The server is a process of its own, with an engine of its own; while one arm runs, the other's engine is idle. What the
server adds is told by one and the same chat: what its client saw, less what its engine took from the moment it took
the request up (whose conversation was tokenised, and its kept texts recognised, before) to its first token.
"""

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from agentkv.api import ChatMessage, ChatRequest, ChatService, Reuse
from agentkv.client import Client
from agentkv.config import ServiceConfig
from agentkv.embedded import model_directory
from agentkv.errors import ConfigError
from agentkv.service import Service
from agentkv_evals.comparison.environment import environment
from agentkv_evals.worlds.words import OBJECTS, PERSONS, PLACES

_START_SECONDS = 300
_KV_MEMORY = "512MiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Times of one chat, in milliseconds.

    Attributes:
        in_process: first text of the same chat in this process.
        client: first text at the HTTP client.
        server: first token, by the server's clock, from the parsed request on.
        engine: first token, from the beginning of the engine's admission on.
    """

    in_process: float
    client: float
    server: float
    engine: float

    @property
    def added(self) -> float:
        """What the server adds to its engine: everything between the client and the admitted request, and back."""
        return self.client - self.engine

    @property
    def transported(self) -> float:
        """The part of it outside the service: HTTP, JSON and events."""
        return self.client - self.server


def run_server(
    *, length: int, reuse: Reuse, rounds: int, seed: int, json_file: Path | None, console: Console
) -> dict[str, Any]:
    """Measure; returns the figures.

    Args:
        length: tokens of the conversation, about.
        reuse: of all chats.
        rounds: timed rounds; one more is dropped. In each, both arms ask a conversation that is new to them (`first
            turn`: all of it is prefilled), then ask on (`next turn`: all but the question is read from the prefix).
        seed: of the conversations.

    Raises:
        ConfigError: a file that can't be written, or a server that does not start.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    config = ServiceConfig.from_values(kv_memory=_KV_MEMORY)
    samples: dict[str, list[Sample]] = {"first turn": [], "next turn": []}
    num_tokens = 0
    with running_server() as url, Service.open(model_directory(), config) as service, Client(url) as client:
        for number in range(rounds + 1):  # the first is dropped
            messages = _conversation(service, length, random.Random(seed * 1000 + number))
            for turn, taken in samples.items():
                arms: dict[str, ChatService] = {"in process": service, "over HTTP": client}
                order = sorted(arms, reverse=bool(number % 2))
                times = {name: _first_token(arms[name], messages, reuse) for name in order}
                client_ms, server_ms, engine_ms = times["over HTTP"]
                taken.append(
                    Sample(in_process=times["in process"][0], client=client_ms, server=server_ms, engine=engine_ms)
                )
                messages = (*messages, *_question(turn))
            num_tokens = len(service.texts.tokenize(messages))
    for taken in samples.values():
        del taken[0]
    title = f"time to first token, {num_tokens} tokens, {reuse}, {rounds} rounds: medians (min..max), ms"
    console.print(_table(samples, title))
    content = {"tokens": num_tokens, "reuse": str(reuse), "rounds": rounds, "seed": seed, "environment": environment()}
    content["turns"] = {turn: [asdict(each) for each in taken] for turn, taken in samples.items()}
    content["added_ms_median"] = {turn: median(each.added for each in taken) for turn, taken in samples.items()}
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


@contextmanager
def running_server(*options: str) -> Iterator[str]:
    """The URL of an `agentkv serve` on a free port, once it is ready.

    Args:
        options: of the command, beside those of its port and memory.

    Raises:
        ConfigError: it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "from agentkv.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen([*command, "--kv-memory", _KV_MEMORY, *options], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"the server did not start: try `agentkv serve --port {port}` and see what it says")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").is_success
    except httpx.TransportError:
        return False


def _conversation(service: Service, length: int, lot: random.Random) -> tuple[ChatMessage, ...]:
    """Turns of random words, with a question at the end."""
    messages = [ChatMessage(role="system", content="You answer questions about reports.")]
    words = (*PERSONS, *PLACES, *OBJECTS)
    while len(service.texts.tokenize(messages)) < length - 300:
        role = "assistant" if messages[-1].role == "user" else "user"
        messages.append(ChatMessage(role=role, content=" ".join(lot.choices(words, k=200))))
    if messages[-1].role == "user":
        messages.append(ChatMessage(role="assistant", content="That is all."))
    return (*messages, ChatMessage(role="user", content="Where is the key?"))


def _question(turn: str) -> tuple[ChatMessage, ...]:
    return (
        ChatMessage(role="assistant", content=f"It is in the {turn}."),
        ChatMessage(role="user", content="Who has it now?"),
    )


def _first_token(service: ChatService, messages: tuple[ChatMessage, ...], reuse: Reuse) -> tuple[float, float, float]:
    """Milliseconds to the first text as the caller sees it, and to the first token as the service and its engine do."""
    request = ChatRequest(messages=messages, max_tokens=4, reuse=reuse)
    started = time.perf_counter()
    first = usage = None
    for delta in service.submit(request):
        if first is None and (delta.text or delta.finish_reason):
            first = time.perf_counter() - started
        usage = delta.usage or usage
    assert first is not None, "the chat ended without a delta"
    assert usage is not None, "the chat ended without usage"
    assert usage.ttft is not None, "the chat ended before its first token"
    assert usage.queue is not None, "the chat was never admitted"
    return 1e3 * first, 1e3 * usage.ttft, 1e3 * (usage.ttft - usage.queue)


def _table(samples: dict[str, list[Sample]], title: str) -> Table:
    table = Table(title=title)
    for name in ("turn", "in process", "client", "engine", "client / engine", "added", "of it transport"):
        table.add_column(name, justify="left" if name == "turn" else "right")
    for turn, taken in samples.items():
        added = [each.added for each in taken]
        table.add_row(
            turn,
            f"{median(each.in_process for each in taken):.1f}",
            f"{median(each.client for each in taken):.1f}",
            f"{median(each.engine for each in taken):.1f}",
            f"{median(each.client / each.engine for each in taken):.3f}",
            f"{median(added):.1f} ({min(added):.1f}..{max(added):.1f})",
            f"{median(each.transported for each in taken):.1f}",
        )
    return table
