"""`serve`: on SIGTERM it lets running chats finish, and returns, so that its caller can close the service."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from fakes import eventually

PROGRAM = """
import sys
from tests.fakes import FakeService
from agentkv.server.app import serve
from agentkv.server.settings import ServerSettings

service = FakeService(hold_after=1)
serve(service, "127.0.0.1", int(sys.argv[1]), ServerSettings(shutdown_grace=float(sys.argv[2]), access_log=False))
print("returned", service.streams[0].cancelled.is_set())
"""
CHAT = {"model": "fake/model", "messages": [{"role": "user", "content": "a b"}], "stream": True}


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(400):
        try:
            assert httpx.get(f"{url}/ready").status_code == 200
        except httpx.ConnectError:
            assert process.poll() is None
            time.sleep(0.025)
        else:
            return
    raise AssertionError("the server did not come up")


def start(grace: float) -> tuple[str, subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(port), str(grace)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_until_ready(f"http://127.0.0.1:{port}", process)
    return f"http://127.0.0.1:{port}", process


def read_until(lines: Iterator[str], word: str) -> None:
    while word not in next(lines):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_chat_that_outlasts_the_grace_is_cut_and_serve_returns(number: signal.Signals) -> None:
    url, process = start(grace=0.5)
    with process, httpx.stream("POST", f"{url}/v1/chat/completions", json=CHAT) as response:
        lines = response.iter_lines()
        read_until(lines, "a")
        process.send_signal(number)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out.strip()) == (0, "returned True")


def test_while_it_drains_the_server_says_so_and_a_second_signal_ends_it() -> None:
    url, process = start(grace=60)
    with process, httpx.stream("POST", f"{url}/v1/chat/completions", json=CHAT) as response:
        lines = response.iter_lines()
        read_until(lines, "a")
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: httpx.get(f"{url}/ready").status_code == 503)
        refused = httpx.post(f"{url}/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert httpx.get(f"{url}/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_when_nothing_runs_the_drain_is_over_at_once() -> None:
    url, process = start(grace=60)
    with process:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=CHAT) as response:
            read_until(response.iter_lines(), "a")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
