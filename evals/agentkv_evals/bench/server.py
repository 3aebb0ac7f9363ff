"""`agentkv bench server`: time to first token at an HTTP client, against the same chat in process, arms interleaved.

The server is a process of its own, with an engine of its own; while one arm runs, the other's engine is idle.
"""

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from agentkv.api import ChatMessage, ChatRequest, ChatService
from agentkv.client import Client
from agentkv.config import ServiceConfig
from agentkv.embedded import model_directory
from agentkv.errors import ConfigError
from agentkv.service import Service
from agentkv_evals.comparison.environment import environment
from agentkv_evals.worlds.words import OBJECTS, PERSONS, PLACES

_START_SECONDS = 300
_KV_MEMORY = "512MiB"


def run_server(*, length: int, rounds: int, seed: int, json_file: Path | None, console: Console) -> dict[str, Any]:
    """Measure; returns the figures.

    Args:
        length: tokens of the conversation, about.
        rounds: timed rounds; one more is dropped. In each, both arms ask a conversation that is new to them (`first
            turn`: all of it is prefilled), then ask on (`next turn`: all but the question is read from the prefix).
        seed: of the conversations.

    Raises:
        ConfigError: a file that can't be written, or a server that does not start.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    config = ServiceConfig.from_values(kv_memory=_KV_MEMORY)
    timings: dict[str, list[tuple[float, float, float]]] = {"first turn": [], "next turn": []}
    num_tokens = 0
    with _server() as url, Service.open(model_directory(), config) as service, Client(url) as client:
        for number in range(rounds + 1):  # the first is dropped
            messages = _conversation(service, length, random.Random(seed * 1000 + number))
            for turn, records in timings.items():
                arms: dict[str, ChatService] = {"in process": service, "over HTTP": client}
                order = sorted(arms, reverse=bool(number % 2))
                times = {name: _first_token(arms[name], messages) for name in order}
                http, own = times["over HTTP"]
                records.append((times["in process"][0], http, own))
                messages = (*messages, *_question(turn))
            num_tokens = len(service.texts.tokenize(messages))
    figures = {turn: _figures(records[1:]) for turn, records in timings.items()}
    console.print(_table(figures, num_tokens, rounds))
    content = {"tokens": num_tokens, "rounds": rounds, "seed": seed, "environment": environment(), "turns": figures}
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


@contextmanager
def _server() -> Iterator[str]:
    """`agentkv serve` on a free port, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "from agentkv.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen([*command, "--kv-memory", _KV_MEMORY], stderr=subprocess.DEVNULL)
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


def _first_token(service: ChatService, messages: tuple[ChatMessage, ...]) -> tuple[float, float]:
    """Seconds to the first text, as the caller sees it, and to the first token, as the service says."""
    request = ChatRequest(messages=messages, max_tokens=4)
    started = time.perf_counter()
    first = usage = None
    for delta in service.submit(request):
        if first is None and (delta.text or delta.finish_reason):
            first = time.perf_counter() - started
        usage = delta.usage or usage
    assert first is not None, "the chat ended without a delta"
    assert usage is not None, "the chat ended without usage"
    assert usage.ttft is not None, "the chat ended before its first token"
    return first, usage.ttft


def _figures(records: list[tuple[float, float, float]]) -> dict[str, Any]:
    return {
        "in_process_ms": [1e3 * process for process, _, _ in records],
        "http_ms": [1e3 * http for _, http, _ in records],
        "own_ms": [1e3 * own for _, _, own in records],
        "in_process_ms_median": 1e3 * median(process for process, _, _ in records),
        "http_ms_median": 1e3 * median(http for _, http, _ in records),
        "overhead_ms_median": 1e3 * median(http - own for _, http, own in records),
        "difference_ms_median": 1e3 * median(http - process for process, http, _ in records),
    }


def _table(figures: dict[str, dict[str, Any]], num_tokens: int, rounds: int) -> Table:
    title = f"time to first token, {num_tokens} tokens, medians of {rounds} rounds (ms)"
    table = Table(title=title)
    for name in ("turn", "in process", "over HTTP", "HTTP - in process", "HTTP - server's own TTFT"):
        table.add_column(name, justify="left" if name == "turn" else "right")
    for turn, each in figures.items():
        names = ("in_process_ms_median", "http_ms_median", "difference_ms_median", "overhead_ms_median")
        table.add_row(turn, *(f"{each[name]:.1f}" for name in names))
    return table
