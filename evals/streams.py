"""Many streaming clients at once, with locust: no stream may be lost, mixed with another or other than alone.

    pip install locust        # in an environment of its own: its pytest plugin would load with every test
    locust -f evals/streams.py --headless --users 200 --spawn-rate 200 --host http://127.0.0.1:8000

Every user asks a question of its own (a report that nobody else sends) and has one stream. Before they start, all
questions are asked one after the other; what is said then must be said again. One user in sixteen reads 16 bytes at a
time. The exit status is 1 if any stream failed.
"""

# ruff: noqa: SIM905 - a word list reads best as words
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import json
import random
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import requests
from locust import HttpUser, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

PERSONS = "Anton Bruno Carlo Delia Emil Freda Greta Helga Ivo Julia Karl Leon Milo Nora Oskar Pia".split()
PLACES = (
    "attic barn cellar chapel garden garage hall harbour hut kitchen market museum palace school shop tower".split()
)
SYSTEM = "You read reports and say where people are. Answer in one sentence."
SLOW_BYTES, SLOW_SECONDS = 16, 0.02

numbers = count()
alone: dict[int, str] = {}
ids: set[str] = set()
done = count(1)


class WrongStream(Exception):
    """A stream that was cut, mixed or other than alone; the message says which."""


def body(number: int, model: str) -> dict[str, Any]:
    """The chat of a user: eight sentences drawn for it, and a question about one of them."""
    lot = random.Random(number)
    persons, places = lot.sample(PERSONS, 8), lot.sample(PLACES, 8)
    report = " ".join(f"{person} is in the {place}." for person, place in zip(persons, places, strict=True))
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "name": f"reporter_{number}", "content": f"Report {number}: {report}"},
        {"role": "user", "content": f"Where is {lot.choice(persons)}?"},
    ]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16, "stream": True}


def read(lines: Iterator[bytes]) -> tuple[str, str]:
    """Id and text of a stream.

    Raises:
        WrongStream: it has no end, no usage, or chunks of two replies.
    """
    text, ended, seen, usage = "", False, set[str](), None
    for line in filter(None, lines):
        data = line.removeprefix(b"data: ")
        if data == b"[DONE]":
            ended = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise WrongStream(f"an error in the stream: {chunk['error']}")
        seen.add(chunk["id"])
        usage = chunk["usage"] or usage
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
    if not ended or usage is None:
        raise WrongStream(f"the stream broke off after {text!r}")
    if len(seen) != 1:
        raise WrongStream(f"chunks of {len(seen)} replies in one stream")
    return seen.pop(), text


def slow_lines(response: Any) -> Iterator[bytes]:
    """Lines of a response of which little is read at a time."""
    held = b""
    for piece in response.iter_content(SLOW_BYTES):
        time.sleep(SLOW_SECONDS)
        *lines, held = (held + piece).split(b"\n")
        yield from lines


class Reader(HttpUser):
    """Asks once, and compares."""

    def on_start(self) -> None:
        """Take a number."""
        self.number = next(numbers)

    @task
    def ask(self) -> None:
        """One stream, read to its end."""
        slow = self.number % 16 == 0
        options = {"json": body(self.number, model_of(self.host)), "stream": True, "catch_response": True}
        with self.client.post("/v1/chat/completions", name="slow" if slow else "stream", **options) as response:
            try:
                response.raise_for_status()
                chat_id, text = read(slow_lines(response) if slow else response.iter_lines())
                check(self.number, chat_id, text)
            except (WrongStream, requests.RequestException, ValueError) as error:
                response.failure(f"user {self.number}: {error}")
            else:
                response.success()
        if next(done) == self.environment.parsed_options.num_users:
            self.environment.runner.quit()
        raise StopUser


def check(number: int, chat_id: str, text: str) -> None:
    """Raises WrongStream for an id that two streams had, or a text other than alone."""
    if chat_id in ids:
        raise WrongStream(f"the id {chat_id} came twice")
    ids.add(chat_id)
    if text != alone[number]:
        raise WrongStream(f"{text!r} instead of {alone[number]!r}")


def model_of(host: str | None) -> str:
    """The served model's name."""
    if host not in models:
        models[host] = requests.get(f"{host}/v1/models", timeout=60).json()["data"][0]["id"]
    return models[host]


models: dict[str | None, str] = {}


@events.test_start.add_listener
def ask_alone(environment: Environment, **_: Any) -> None:
    """Ask all questions one after the other."""
    if isinstance(environment.runner, WorkerRunner):
        raise SystemExit("run it in one process: the users of several would have the same numbers")
    started = time.perf_counter()
    model = model_of(environment.host)
    for number in range(environment.parsed_options.num_users):
        asked = body(number, model) | {"stream": False}
        reply = requests.post(f"{environment.host}/v1/chat/completions", json=asked, timeout=600)
        reply.raise_for_status()
        alone[number] = reply.json()["choices"][0]["message"]["content"]
    print(f"{len(alone)} questions alone: {time.perf_counter() - started:.0f} s, {len(set(alone.values()))} answers")
