"""`serve`: on SIGTERM it lets running chats finish, and returns, so that its caller can close the service."""

import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

PROGRAM = """
import sys
from tests.fakes import FakeService
from agentkv.server.app import serve
from agentkv.server.settings import ServerSettings

service = FakeService(hold_after=1)
serve(service, "127.0.0.1", int(sys.argv[1]), ServerSettings(shutdown_grace=1, access_log=False))
print("returned", service.streams[0].cancelled.is_set())
"""


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_serve_returns(number: signal.Signals) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        body = {"model": "fake/model", "messages": [{"role": "user", "content": "a b"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            while "a" not in next(lines):
                pass
            process.send_signal(number)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)  # the chat outlasts the grace
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out.strip()) == (0, "returned True")
