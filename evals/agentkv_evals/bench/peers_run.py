"""`agentkv bench peers`, once its options are read: the same prompts to servers with OpenAI's API, in turn."""

import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from agentkv.errors import ConfigError, RemoteError
from agentkv_evals.comparison.environment import environment, processor

NUM_CLIENTS = 8
WORDS = ("tide", "ship", "harbour", "count", "table", "report", "water", "rise", "year", "stone", "light", "wind")
MEASURES = {"cold_ms": "TTFT cold", "warm_ms": "TTFT warm", "token_ms": "ms a token", "tokens_s": "tokens/s, 8 clients"}


@dataclass(frozen=True, slots=True)
class Timed:
    """One streamed reply: seconds to the first text and to the end, and its tokens."""

    first: float
    last: float
    num_tokens: int
    num_prompt: int | None


@dataclass(slots=True)
class Peer:
    """A server; `figures` has a list for each of `MEASURES`."""

    url: str
    model: str
    http: httpx.Client
    figures: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    num_prompt: int | None = None

    def ask(self, text: str, num_tokens: int) -> Timed:
        """Stream one reply. Raises RemoteError where the server does not answer as OpenAI's would."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": num_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started, times, usage = time.perf_counter(), [], None
        with self.http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
            if response.is_error:
                raise RemoteError(f"{self.url} answered {response.status_code}: {response.read()[:300]!r}")
            for line in response.iter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                chunk = json.loads(line.removeprefix("data:"))
                usage = chunk.get("usage") or usage
                if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                    times.append(time.perf_counter() - started)
        if not times:
            raise RemoteError(f"{self.url} gave no text for a prompt of {len(text)} characters: is it a chat model?")
        count = usage["completion_tokens"] if usage else len(times)
        return Timed(times[0], times[-1], count, usage["prompt_tokens"] if usage else None)


def run_peers(
    *,
    urls: Sequence[str],
    models: Sequence[str],
    num_words: int,
    num_tokens: int,
    rounds: int,
    seed: int,
    json_file: Path | None,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure; returns one record a server.

    Raises:
        ConfigError: a file that can't be written.
        RemoteError: a server that does not answer.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    lot = random.Random(seed)
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=600, limits=limits) as http:
        try:
            peers = [_peer(http, url, models[number : number + 1]) for number, url in enumerate(urls)]
            for number in range(rounds + 1):  # the first is dropped
                text = _text(lot, num_words)
                crowd = [_text(lot, num_words) for _ in range(NUM_CLIENTS)]
                for peer in peers if number % 2 else reversed(peers):
                    _play(peer, text, crowd, num_tokens)
        except httpx.HTTPError as error:
            raise RemoteError(f"a server did not answer ({error!r}): start it, and check its URL") from error
    records = [_record(peer) for peer in peers]
    console.print(_table(records))
    if json_file is not None:
        content = {"servers": records, "words": num_words, "tokens": num_tokens, "rounds": rounds, "seed": seed}
        content |= {"environment": environment(), "processor": processor("cpu")}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return records


def _peer(http: httpx.Client, url: str, model: Sequence[str]) -> Peer:
    root = url.rstrip("/").removesuffix("/v1")
    name = model[0] if model else http.get(f"{root}/v1/models").raise_for_status().json()["data"][0]["id"]
    return Peer(root, name, http)


def _play(peer: Peer, text: str, crowd: Sequence[str], num_tokens: int) -> None:
    cold, warm = peer.ask(text, num_tokens), peer.ask(text, num_tokens)
    started = time.perf_counter()
    with ThreadPoolExecutor(len(crowd)) as pool:
        replies = list(pool.map(lambda prompt: peer.ask(prompt, num_tokens), crowd))
    elapsed = time.perf_counter() - started
    peer.num_prompt = cold.num_prompt
    peer.figures["cold_ms"].append(1e3 * cold.first)
    peer.figures["warm_ms"].append(1e3 * warm.first)
    peer.figures["token_ms"].append(1e3 * (warm.last - warm.first) / max(warm.num_tokens - 1, 1))
    peer.figures["tokens_s"].append(sum(reply.num_tokens for reply in replies) / elapsed)


def _text(lot: random.Random, num_words: int) -> str:
    return " ".join(lot.choices(WORDS, k=num_words))


def _record(peer: Peer) -> dict[str, Any]:
    figures = {name: values[1:] for name, values in peer.figures.items()}
    medians = {f"{name}_median": median(values) for name, values in figures.items()}
    return {"url": peer.url, "model": peer.model, "prompt_tokens": peer.num_prompt, **figures, **medians}


def _table(records: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="servers, same prompts (medians)")
    for title in ("server", "prompt", *MEASURES.values()):
        table.add_column(title, justify="left" if title == "server" else "right")
    for record in records:
        figures = (f"{record[f'{name}_median']:.1f}" for name in MEASURES)
        table.add_row(record["url"], str(record["prompt_tokens"] or "?"), *figures)
    return table
